#include "runtime/output_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>

#include "partition/wording.hpp"
#include "runtime/results.hpp"

namespace stagecoach {
namespace {

[[noreturn]] void fail(const std::string& name, const char* what) {
  throw OutputError(fmt::format("{}: {}: {}", shown(name), what, std::strerror(errno)));
}

// The partial files of this process, by descriptor.
struct Unfinished {
  std::mutex mutex;
  std::map<int, std::string> paths;
};
Unfinished& unfinished() {
  static Unfinished all;
  return all;
}
void note_unfinished(int fd, const std::string& path) {
  const std::lock_guard lock(unfinished().mutex);
  unfinished().paths.emplace(fd, path);
}
void forget_unfinished(int fd) {
  const std::lock_guard lock(unfinished().mutex);
  unfinished().paths.erase(fd);
}

void unlink_own(const std::string& path, int fd) {
  if (names(path, fd)) ::unlink(path.c_str());
}

// File systems without locks do without.
bool taken_by_another(int fd) {
  return ::flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
}

}  // namespace

bool names(const std::string& path, int fd) {
  struct stat mine = {};
  struct stat named = {};
  return ::fstat(fd, &mine) == 0 && ::stat(path.c_str(), &named) == 0 && mine.st_ino == named.st_ino &&
         mine.st_dev == named.st_dev;
}

void sync_folder_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) fail(folder, "cannot open the folder of the results");
  const int result = ::fsync(fd);
  const int error = errno;
  ::close(fd);
  errno = error;
  if (result != 0 && error != EINVAL && error != ENOTSUP) fail(folder, "cannot make the results durable");
}

void write_all(int fd, std::string_view bytes, const std::string& name) {
  while (!bytes.empty()) {
    const ssize_t put = ::write(fd, bytes.data(), bytes.size());
    if (put >= 0) {
      bytes.remove_prefix(static_cast<std::size_t>(put));
    } else if (errno == EAGAIN) {  // a terminal or pipe that someone made non-blocking
      pollfd writable = {fd, POLLOUT, 0};
      if (::poll(&writable, 1, -1) < 0 && errno != EINTR) fail(name, "cannot write");
    } else if (errno != EINTR) {
      fail(name, "cannot write");
    }
  }
}

void require_replaceable(const std::string& path) {
  struct stat info = {};
  if (::stat(path.c_str(), &info) == 0 && !S_ISREG(info.st_mode)) {
    throw OutputPlaceError(fmt::format("{}: is not a plain file, so results cannot replace it", shown(path)));
  }
}

void fail_to_make(const std::string& path) {
  const int error = errno;
  const std::size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  struct stat info = {};
  const bool no_folder = error == ENOENT && ::stat(folder.c_str(), &info) != 0;
  const std::string text = fmt::format("{}: cannot make the file: {}", shown(path),
                                       no_folder ? "its folder does not exist" : std::strerror(error));
  switch (error) {
    case ENOENT:
    case ENOTDIR:
    case EISDIR:
    case EACCES:
    case EPERM:
    case ELOOP:
    case ENAMETOOLONG:
      throw OutputPlaceError(text);
    default:
      throw OutputError(text);
  }
}

OutputFile::OutputFile(std::string path) : path_(std::move(path)), partial_(path_ + ".partial") {
  require_replaceable(path_);
  open_partial();
  note_unfinished(fd_, partial_);
}

// A file of its own each time. One that is there already is not written to: where there are no locks, or its run's host
// is cut off, that run may live on, and what it still writes must not end up in these results.
void OutputFile::open_partial() {
  for (;;) {
    const int old = ::open(partial_.c_str(), O_WRONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (old < 0 && errno != ENOENT) fail_to_make(path_);
    if (old >= 0) {
      const bool taken = taken_by_another(old);
      const bool there = !taken && names(partial_, old);
      if (there) ::unlink(partial_.c_str());
      ::close(old);
      if (taken) refuse();
    }
    fd_ = ::open(partial_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd_ < 0 && errno == EEXIST) continue;
    if (fd_ < 0) fail_to_make(path_);
    const bool taken = taken_by_another(fd_);
    if (!taken && names(partial_, fd_)) return;
    ::close(std::exchange(fd_, -1));  // another run came between the two
    if (taken) refuse();
  }
}

void OutputFile::refuse() const {
  throw OutputError(fmt::format("{}: another run is writing it; wait for it or choose another name", shown(partial_)));
}

OutputFile::~OutputFile() {
  if (fd_ < 0) return;
  forget_unfinished(fd_);
  unlink_own(partial_, fd_);
  ::close(fd_);
}

void discard_unfinished_files() {
  const std::lock_guard lock(unfinished().mutex);
  for (const auto& [fd, path] : unfinished().paths) unlink_own(path, fd);
}

void OutputFile::commit() {
  if (::fsync(fd_) != 0) fail(partial_, "cannot make the results durable");
  if (!names(partial_, fd_)) {
    throw OutputError(fmt::format("{}: another run has taken its place", shown(partial_)));
  }
  if (::rename(partial_.c_str(), path_.c_str()) != 0) fail(path_, "cannot put the results in place");
  forget_unfinished(fd_);
  ::close(fd_);
  fd_ = -1;
  sync_folder_of(path_);
}

}  // namespace stagecoach
