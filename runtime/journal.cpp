#include "runtime/journal.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>

#include "partition/wording.hpp"
#include "runtime/checksum.hpp"
#include "runtime/output_file.hpp"
#include "runtime/results.hpp"
#include "runtime/wire.hpp"

namespace stagecoach {
namespace {

constexpr std::chrono::milliseconds kLockPause{100};
constexpr std::size_t kWriteAt = 1 << 20;     // bytes that are kept back at most
constexpr std::size_t kLookAtOnce = 4 << 20;  // bytes of a file that are in memory at once

[[noreturn]] void fail(const std::string& path, const char* what) {
  throw OutputError(fmt::format("{}: {}: {}", shown(path), what, std::strerror(errno)));
}

// A file's bytes as they are now.
class View {
 public:
  View(int fd, const std::string& path) {
    struct stat info = {};
    if (::fstat(fd, &info) != 0) fail(path, "cannot look at the file");
    size_ = static_cast<std::size_t>(info.st_size);
    if (size_ == 0) return;
    data_ = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, fd, 0);
    if (data_ == MAP_FAILED) fail(path, "cannot read the file");
  }
  ~View() {
    if (size_ > 0) ::munmap(data_, size_);
  }
  View(const View&) = delete;
  View& operator=(const View&) = delete;

  std::span<const std::byte> bytes() const { return {static_cast<const std::byte*>(data_), size_}; }
  // Pages that were read count as this process's memory, however many there are; they are read anew if need be.
  void let_go() const {
    if (size_ > 0) ::madvise(data_, size_, MADV_DONTNEED);
  }

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

std::string difference(const JobIdentity& now, const JobIdentity& before) {
  for (const auto& [name, value] : now.parts) {
    const auto other = std::ranges::find(before.parts, name, [](const auto& part) { return part.first; });
    if (other == before.parts.end()) return fmt::format("without {}", name);
    if (other->second != value) return fmt::format("with {} {}, and now it is {}", name, other->second, value);
  }
  return "with other options";
}

std::string_view text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace

Journal::Journal(const std::string& output, const JobIdentity& job, bool fresh, const std::function<void()>& waiting)
    : output_(output), path_(path_of(output)), job_(job), key_(job.key()) {
  try {
    lock(waiting);
    read_old(fresh);
    if (!complete_) replace(record_of(job_));
  } catch (...) {
    struct stat info = {};
    if (fd_ >= 0 && ::fstat(fd_, &info) == 0 && info.st_size == 0) ::unlink(path_.c_str());
    if (fd_ >= 0) ::close(fd_);
    throw;
  }
}

Journal::~Journal() {
  if (fd_ < 0) return;
  if (!worth_keeping_ && names(path_, fd_)) ::unlink(path_.c_str());
  ::close(fd_);
}

// Ends with the file open that has the name, locked where the file system can.
void Journal::lock(const std::function<void()>& waiting) {
  for (;;) {
    fd_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd_ < 0) fail_to_make(output_);
    const bool taken = ::flock(fd_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    if (!taken && names(path_, fd_)) return;
    ::close(std::exchange(fd_, -1));
    if (!taken) continue;  // removed or replaced between the two
    if (waiting) waiting();
    std::this_thread::sleep_for(kLockPause);
  }
}

void Journal::read_old(bool fresh) {
  const View view(fd_, path_);
  if (fresh) return;
  JournalContents contents = read_journal(view.bytes(), key_, [&view] { view.let_go(); });
  if (contents.completion) {
    const std::optional<Completion> results = look_at_results();
    if (results && results->bytes == contents.completion->bytes && results->xxh3 == contents.completion->xxh3) {
      complete_ = contents.completion->last_words;
      worth_keeping_ = true;
      return;
    }
  }
  if (contents.samples.empty() && contents.other_samples > 0) {
    throw JournalMismatch(fmt::format(
        "{}: this job was begun {}; start it again as it was, give --fresh to begin anew, or another --output",
        shown(path_), contents.other ? difference(job_, *contents.other) : "with other options"));
  }
  entries_ = std::move(contents.samples);
  damaged_bytes_ = contents.damaged_bytes;
  worth_keeping_ = !entries_.empty();
}

std::optional<Completion> Journal::look_at_results() const {
  const int fd = ::open(output_.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return std::nullopt;
  try {
    const View view(fd, output_);
    ::close(fd);
    Xxh3 hash;
    for (std::span<const std::byte> rest = view.bytes(); !rest.empty();) {
      const std::size_t size = std::min(kLookAtOnce, rest.size());
      hash.update(rest.first(size));
      rest = rest.subspan(size);
      view.let_go();
    }
    return Completion{static_cast<std::int64_t>(view.bytes().size()), hash.value(), {}};
  } catch (const OutputError&) {
    ::close(fd);
    return std::nullopt;
  }
}

// A new file, with the samples of earlier runs behind `head`, takes the old one's place and name: whoever still writes
// to the old one is out.
void Journal::replace(std::span<const std::byte> head) {
  const std::string fresh_path = path_ + ".new";
  ::unlink(fresh_path.c_str());
  const int fresh_fd = ::open(fresh_path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666);
  if (fresh_fd < 0) fail(fresh_path, "cannot make the journal");
  try {
    ::flock(fresh_fd, LOCK_EX | LOCK_NB);
    write_all(fresh_fd, text_of(head), fresh_path);
    const View old(fd_, path_);
    std::vector<std::byte> batch;
    auto at = static_cast<std::int64_t>(head.size());
    for (SampleEntry& entry : entries_) {
      const auto record = old.bytes().subspan(static_cast<std::size_t>(entry.offset), entry.bytes);
      batch.insert(batch.end(), record.begin(), record.end());
      entry.offset = std::exchange(at, at + entry.bytes);
      if (batch.size() < kWriteAt) continue;
      write_all(fresh_fd, text_of(batch), fresh_path);
      batch.clear();
      old.let_go();
    }
    write_all(fresh_fd, text_of(batch), fresh_path);
    if (::fsync(fresh_fd) != 0) fail(fresh_path, "cannot make the journal durable");
    if (::rename(fresh_path.c_str(), path_.c_str()) != 0) fail(path_, "cannot put the journal in place");
    sync_folder_of(path_);
  } catch (...) {
    ::unlink(fresh_path.c_str());
    ::close(fresh_fd);
    throw;
  }
  ::close(std::exchange(fd_, fresh_fd));
}

std::vector<Sample> Journal::recorded(std::int64_t index) const {
  std::vector<Sample> samples;
  const auto all = std::ranges::equal_range(entries_, index, {}, &SampleEntry::index);
  std::vector<std::byte> record;
  for (const SampleEntry& entry : all) {
    record.resize(entry.bytes);
    const ssize_t got = ::pread(fd_, record.data(), record.size(), entry.offset);
    if (got != static_cast<ssize_t>(record.size())) fail(path_, "cannot read the journal");
    try {
      samples.push_back(sample_of(record));
    } catch (const WireError& error) {
      throw OutputError(fmt::format("{}: changed while it was read: {}", shown(path_), error.what()));
    }
  }
  return samples;
}

void Journal::append(const Sample& sample) {
  const std::vector<std::byte> record = record_of(key_, sample);
  buffer_.insert(buffer_.end(), record.begin(), record.end());
  unsynced_ = true;
  worth_keeping_ = true;
  if (buffer_.size() < kWriteAt) return;
  write_all(fd_, text_of(buffer_), path_);
  buffer_.clear();
}

void Journal::sync() {
  if (!unsynced_) return;
  require_mine();
  write_all(fd_, text_of(buffer_), path_);
  buffer_.clear();
  if (::fdatasync(fd_) != 0) fail(path_, "cannot make the journal durable");
  unsynced_ = false;
  last_sync_ = std::chrono::steady_clock::now();
}

void Journal::require_mine() const {
  if (names(path_, fd_)) return;
  throw OutputError(fmt::format("{}: another run has taken this job over", shown(path_)));
}

void Journal::finish(const std::string& last_words) {
  require_mine();
  std::optional<Completion> results = look_at_results();
  if (!results) fail(output_, "cannot read the results again");
  results->last_words = last_words;
  std::vector<std::byte> head = record_of(job_);
  const std::vector<std::byte> end = record_of(key_, *results);
  head.insert(head.end(), end.begin(), end.end());
  entries_.clear();
  replace(head);
  unsynced_ = false;
}

}  // namespace stagecoach
