// Writing bytes so that nothing is lost quietly: whole writes, and files that appear complete or not at all.
#pragma once

#include <string>
#include <string_view>

namespace stagecoach {

// Writes all of `bytes` to `fd`, however often the system takes only a part. Throws OutputError that begins
// with `name`.
void write_all(int fd, std::string_view bytes, const std::string& name);

// Makes names in the folder of `path` durable: a name alone is durable only once its folder is. Throws OutputError.
void sync_folder_of(const std::string& path);

// That the file open as `fd` is the one that `path` names: no other has taken its place.
bool names(const std::string& path, int fd);

// Throws OutputPlaceError when `path` is there and no plain file.
void require_replaceable(const std::string& path);

// Throws what `errno` says of making a file for the results `path`: OutputPlaceError, or OutputError where the place is
// right and the system has no room.
[[noreturn]] void fail_to_make(const std::string& path);

// PATH.partial until `commit` renames it to PATH: an older PATH stays as it is until then, and for good if
// anything fails. Only one process at a time has the partial file of one PATH: a second is refused, or where the file
// system has no locks takes the name over, which the first notices in `commit`. Throws OutputError, and on making it
// OutputPlaceError.
class OutputFile {
 public:
  explicit OutputFile(std::string path);
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  ~OutputFile();  // removes the partial file unless it was committed

  // For libraries that open files themselves; what they put there is what `commit` makes durable.
  const std::string& partial_path() const { return partial_; }
  void write(std::string_view bytes) { write_all(fd_, bytes, partial_); }
  void commit();  // durable when it returns; nothing can be written after it

 private:
  void open_partial();
  [[noreturn]] void refuse() const;

  std::string path_;
  std::string partial_;
  int fd_ = -1;
};

// Removes the partial files of this process: for an end without destructors.
void discard_unfinished_files();

}  // namespace stagecoach
