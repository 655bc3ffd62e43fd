// Lines of a file that is read twice: once to check it, once to use it.
//
// Whatever cannot be rewound (standard input, a pipe) is first copied to an unnamed temporary file. The file
// stays open, so replacing it by another is not noticed, and writing into it between or during the passes is
// an error, not a mixture.
#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace stagecoach {

class LineReader {
 public:
  // "-" is standard input. Throws PromptError, as all functions here; also for a longer line.
  LineReader(const std::string& path, const std::string& temporary_folder,
             std::size_t max_line_bytes = std::size_t{64} << 20);
  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;
  ~LineReader();

  // The next line without its "\n". False at the end; a last line without "\n" counts, nothing after the last
  // "\n" does not.
  bool next(std::string& line);
  // "FILE:LINE" of the line that `next` gave last.
  std::string place() const;
  const std::string& name() const { return name_; }
  // Whether the last line ended in "\n".
  bool line_was_ended() const { return line_was_ended_; }
  void rewind();

 private:
  void fill();

  std::string name_;
  std::size_t max_line_bytes_;
  int fd_ = -1;
  bool spooled_ = false;
  struct stat first_seen_ = {};
  std::string buffer_;
  std::size_t begin_ = 0;  // of what is not yet taken from `buffer_`
  bool at_end_ = false;
  bool line_was_ended_ = false;
  std::int64_t line_ = 0;
};

}  // namespace stagecoach
