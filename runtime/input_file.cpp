#include "runtime/input_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "runtime/weight_source.hpp"

namespace stagecoach {
namespace {

constexpr std::size_t kMaxRead = std::size_t{1} << 30;  // Linux moves at most 2 GiB per call

[[noreturn]] void fail(const std::filesystem::path& path, const char* doing, int error) {
  throw WeightError(fmt::format("{}: cannot {}: {}", path.string(), doing, std::strerror(error)));
}

}  // namespace

InputFile::InputFile(std::filesystem::path path) : path_(std::move(path)) {
  do {  // O_NONBLOCK: opening a named pipe must be an error below, not a wait for its writer
    descriptor_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  } while (descriptor_ < 0 && errno == EINTR);
  if (descriptor_ < 0) fail(path_, "open", errno);
  struct stat info = {};
  const int status = ::fstat(descriptor_, &info);
  const int error = errno;
  if (status != 0 || !S_ISREG(info.st_mode)) {
    ::close(std::exchange(descriptor_, -1));
    if (status != 0) fail(path_, "read its size", error);
    throw WeightError(fmt::format("{}: is not a regular file", path_.string()));
  }
  bytes_ = info.st_size;
}

InputFile::~InputFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

InputFile::InputFile(InputFile&& other) noexcept
    : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)), bytes_(other.bytes_) {}

InputFile& InputFile::operator=(InputFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

void InputFile::read(std::int64_t offset, std::span<std::byte> out, std::string_view what) const {
  std::size_t done = 0;
  while (done < out.size()) {
    const ssize_t got = ::pread(descriptor_, out.data() + done, std::min(out.size() - done, kMaxRead),
                                offset + static_cast<std::int64_t>(done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      throw WeightError(fmt::format("{}: {}: cannot read: {}", path_.string(), what, std::strerror(errno)));
    }
    if (got == 0) {
      throw WeightError(fmt::format("{}: {}: the file ends at byte {}, expected {} bytes from {}", path_.string(), what,
                                    offset + static_cast<std::int64_t>(done), out.size(), offset));
    }
    done += static_cast<std::size_t>(got);
  }
}

std::string read_text_file(const std::filesystem::path& path, std::int64_t max_bytes) {
  const InputFile file(path);
  if (file.bytes() > max_bytes) {
    throw WeightError(fmt::format("{}: is {} bytes long, more than the {} that such a file may have", path.string(),
                                  file.bytes(), max_bytes));
  }
  std::string text(static_cast<std::size_t>(file.bytes()), '\0');
  file.read(0, std::as_writable_bytes(std::span(text)), "the file");
  return text;
}

}  // namespace stagecoach
