#include "runtime/line_reader.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "partition/wording.hpp"
#include "runtime/descriptor.hpp"
#include "runtime/prompts.hpp"

namespace stagecoach {
namespace {

constexpr std::size_t kChunkBytes = std::size_t{1} << 18;

[[noreturn]] void fail(const std::string& name, const char* what) {
  throw PromptError(fmt::format("{}: {}: {}", name, what, std::strerror(errno)));
}

ssize_t read_some(int fd, char* out, std::size_t bytes) {
  ssize_t got = 0;
  do {
    got = ::read(fd, out, bytes);
  } while (got < 0 && errno == EINTR);
  return got;
}

// An open file without a name.
int make_unnamed_file(const std::string& folder, const std::string& name) {
#ifdef O_TMPFILE
  const int fd = ::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (fd >= 0) return fd;
#endif
  std::string path = folder + "/stagecoach-XXXXXX";
  const int made = ::mkostemp(path.data(), O_CLOEXEC);
  if (made < 0) fail(name, fmt::format("cannot make a temporary file in {}", shown(folder)).c_str());
  ::unlink(path.c_str());
  return made;
}

int spool(int source, const std::string& folder, const std::string& name) {
  Descriptor copy(make_unnamed_file(folder, name));
  std::string chunk(kChunkBytes, '\0');
  for (;;) {
    const ssize_t got = read_some(source, chunk.data(), chunk.size());
    if (got < 0) fail(name, "cannot read");
    if (got == 0) break;
    for (ssize_t done = 0; done < got;) {
      const ssize_t put = ::write(copy.get(), chunk.data() + done, static_cast<std::size_t>(got - done));
      if (put < 0 && errno == EINTR) continue;
      if (put < 0) fail(name, "cannot keep a copy in the temporary folder");
      done += put;
    }
  }
  if (::lseek(copy.get(), 0, SEEK_SET) < 0) fail(name, "cannot rewind the copy");
  return copy.release();
}

bool same_content(const struct stat& a, const struct stat& b) {
  return a.st_size == b.st_size && a.st_mtim.tv_sec == b.st_mtim.tv_sec && a.st_mtim.tv_nsec == b.st_mtim.tv_nsec;
}

}  // namespace

LineReader::LineReader(const std::string& path, const std::string& temporary_folder, std::size_t max_line_bytes)
    : name_(path == "-" ? "standard input" : shown(path)), max_line_bytes_(max_line_bytes) {
  Descriptor opened(path == "-" ? ::dup(STDIN_FILENO) : ::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (opened.get() < 0) fail(name_, "cannot open the prompts");
  struct stat info = {};
  if (::fstat(opened.get(), &info) != 0) fail(name_, "cannot open the prompts");
  if (S_ISDIR(info.st_mode)) throw PromptError(name_ + ": is a folder, not a file of prompts");
  spooled_ = path == "-" || !S_ISREG(info.st_mode);
  Descriptor readable(spooled_ ? spool(opened.get(), temporary_folder, name_) : opened.release());
  if (::fstat(readable.get(), &first_seen_) != 0) fail(name_, "cannot open the prompts");
  fd_ = readable.release();
}

LineReader::~LineReader() {
  ::close(fd_);
}

void LineReader::fill() {
  buffer_.erase(0, begin_);
  begin_ = 0;
  const std::size_t kept = buffer_.size();
  buffer_.resize(kept + kChunkBytes);
  const ssize_t got = read_some(fd_, buffer_.data() + kept, kChunkBytes);
  if (got < 0) fail(name_, "cannot read");
  buffer_.resize(kept + static_cast<std::size_t>(got));
  at_end_ = got == 0;
  if (spooled_) return;
  struct stat now = {};
  if (::fstat(fd_, &now) != 0) fail(name_, "cannot read");
  if (!same_content(now, first_seen_)) {
    throw PromptError(name_ + ": changed while it was in use; start again when it is complete");
  }
}

bool LineReader::next(std::string& line) {
  std::size_t searched = begin_;
  for (;;) {
    const std::size_t end = buffer_.find('\n', searched);
    const bool found = end != std::string::npos;
    const std::size_t length = (found ? end : buffer_.size()) - begin_;
    if (length > max_line_bytes_) {
      throw PromptError(
          fmt::format("{}:{}: longer than a line can be ({} MiB)", name_, line_ + 1, max_line_bytes_ >> 20));
    }
    if (found || at_end_) {
      if (!found && length == 0) return false;
      line.assign(buffer_, begin_, length);
      begin_ += length + (found ? 1 : 0);
      line_was_ended_ = found;
      ++line_;
      return true;
    }
    searched = length;  // `fill` moves what is left to the front
    fill();
  }
}

std::string LineReader::place() const {
  return fmt::format("{}:{}", name_, line_);
}

void LineReader::rewind() {
  if (::lseek(fd_, 0, SEEK_SET) < 0) fail(name_, "cannot rewind");
  buffer_.clear();
  begin_ = 0;
  at_end_ = false;
  line_ = 0;
}

}  // namespace stagecoach
