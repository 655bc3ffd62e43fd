#include "runtime/mapped_file.hpp"

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <mutex>
#include <stdexcept>

#include "runtime/weight_source.hpp"

namespace stagecoach {
namespace {

// What the handler of SIGBUS knows; it may touch lock-free atomics.
struct Slot {
  std::atomic<bool> taken{false};
  std::atomic<std::uintptr_t> begin{0};  // 0: nothing is mapped
  std::atomic<std::uintptr_t> end{0};
  std::atomic<bool> lost{false};
};
std::array<Slot, 64> slots;
static_assert(std::atomic<std::uintptr_t>::is_always_lock_free && std::atomic<bool>::is_always_lock_free);

struct sigaction before_us = {};

void on_bus_error(int signal, siginfo_t* info, void*) {
  const int kept = errno;
  const auto address = reinterpret_cast<std::uintptr_t>(info->si_addr);
  for (Slot& slot : slots) {
    const std::uintptr_t begin = slot.begin;
    const std::uintptr_t end = slot.end;
    if (begin == 0 || address < begin || address >= end) continue;
    slot.lost = true;
    void* zeros = ::mmap(reinterpret_cast<void*>(begin), end - begin, PROT_READ,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    errno = kept;
    if (zeros != MAP_FAILED) return;
  }
  errno = kept;
  ::sigaction(signal, &before_us, nullptr);  // which meets the same error again
}

void catch_bus_errors() {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action = {};
    action.sa_sigaction = on_bus_error;
    action.sa_flags = SA_SIGINFO | SA_RESTART;
    sigemptyset(&action.sa_mask);
    ::sigaction(SIGBUS, &action, &before_us);
  });
}

std::size_t take_slot(std::span<const std::byte> bytes) {
  for (std::size_t i = 0; i < slots.size(); ++i) {
    if (slots[i].taken.exchange(true)) continue;
    const auto begin = reinterpret_cast<std::uintptr_t>(bytes.data());
    slots[i].lost = false;
    slots[i].end = begin + bytes.size();
    slots[i].begin = begin;
    return i;
  }
  throw WeightError("too many files are mapped at once");
}

}  // namespace

MappedFile::MappedFile(const InputFile& file) : file_(file) {
  const auto fail = [&](std::string_view what) {
    throw WeightError(fmt::format("{}: cannot map: {}", file.path().string(), what));
  };
  if (::fstat(file.descriptor(), &mapped_) != 0) fail(std::strerror(errno));
  if (mapped_.st_size != file.bytes()) fail("its size has changed since it was opened");
  if (mapped_.st_size == 0) fail("it is empty");
  const auto size = static_cast<std::size_t>(mapped_.st_size);
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, file.descriptor(), 0);
  if (data == MAP_FAILED) fail(std::strerror(errno));
  ::madvise(data, size, MADV_HUGEPAGE);  // a wish, which few file systems grant
  bytes_ = {static_cast<const std::byte*>(data), size};
  catch_bus_errors();
  try {
    slot_ = take_slot(bytes_);
  } catch (...) {
    ::munmap(data, size);
    throw;
  }
}

MappedFile::~MappedFile() {
  slots[slot_].begin = 0;
  slots[slot_].taken = false;
  ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

void MappedFile::expect(std::int64_t offset, std::int64_t count) const {
  static const std::int64_t page = ::sysconf(_SC_PAGESIZE);
  const std::int64_t begin = offset / page * page;
  const auto pages = bytes_.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(offset + count - begin));
  ::madvise(const_cast<std::byte*>(pages.data()), pages.size(), MADV_WILLNEED);
}

void MappedFile::check() const {
  const auto fail = [this](std::string_view what) {
    throw std::runtime_error(
        fmt::format("{}: {} while weights were used in it (--map-weights); leave it alone while jobs run, or run "
                    "without --map-weights",
                    file_.path().string(), what));
  };
  if (slots[slot_].lost) fail("was cut, or its disk failed,");
  struct stat now = {};
  if (::fstat(file_.descriptor(), &now) != 0) fail(fmt::format("was lost ({})", std::strerror(errno)));
  const bool same = now.st_size == mapped_.st_size && now.st_mtim.tv_sec == mapped_.st_mtim.tv_sec &&
                    now.st_mtim.tv_nsec == mapped_.st_mtim.tv_nsec;
  if (!same) fail("was changed");
}

}  // namespace stagecoach
