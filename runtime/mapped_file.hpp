// A regular file mapped for reading: its bytes without a copy, in the system's page cache, where all processes of a
// machine share them.
//
// What is mapped can change, or vanish when the file is cut or its disk fails. Then reading it raises SIGBUS; the
// handler that the first mapping installs puts zeros in the place of all bytes of that file and leaves a note, and
// `check` tells. A SIGBUS elsewhere goes to the handler that was there before. What was computed from the bytes counts
// only once `check` has passed after it.
#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "runtime/input_file.hpp"

namespace stagecoach {

class MappedFile {
 public:
  // `file` must outlive it. Throws WeightError when it cannot be mapped.
  explicit MappedFile(const InputFile& file);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return bytes_; }
  // Says that [offset, offset + count) will be used soon: the system may begin to read it.
  void expect(std::int64_t offset, std::int64_t count) const;
  // Throws std::runtime_error when the file has been written, cut or lost since it was mapped. A file that was removed
  // or replaced by another (renamed over) stays as it was for whoever has it mapped.
  void check() const;

 private:
  const InputFile& file_;
  std::span<const std::byte> bytes_;
  struct stat mapped_ = {};
  std::size_t slot_ = 0;  // among those that the handler knows
};

}  // namespace stagecoach
