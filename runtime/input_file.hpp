// A regular file opened for reading at any position, from any number of threads.
//
// Owns the descriptor. Errors are WeightErrors that start with the path. Knows no formats.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace stagecoach {

class InputFile {
 public:
  explicit InputFile(std::filesystem::path path);
  ~InputFile();
  InputFile(InputFile&& other) noexcept;
  InputFile& operator=(InputFile&& other) noexcept;
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::int64_t bytes() const { return bytes_; }  // at opening
  int descriptor() const { return descriptor_; }
  // Fills `out` from `offset` on. `what` ("tensor wte.weight") stands in the message when the file ends
  // before.
  void read(std::int64_t offset, std::span<std::byte> out, std::string_view what) const;

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
  std::int64_t bytes_ = 0;
};

// The whole file, refused when it is larger than `max_bytes`.
std::string read_text_file(const std::filesystem::path& path, std::int64_t max_bytes);

}  // namespace stagecoach
