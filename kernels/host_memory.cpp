#include "kernels/host_memory.hpp"

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "kernels/backend.hpp"

namespace stagecoach {
namespace {

constexpr std::size_t kSmallAlignment = 64;
constexpr auto kMapped = static_cast<std::size_t>(HostMemory::kPaged);  // blocks from here on are their own mappings
constexpr std::size_t kHugePage = std::size_t{2} << 20;

std::size_t round_up(std::size_t bytes, std::size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

std::size_t page_bytes() {
  static const auto bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

void* map_pages(std::size_t bytes) {
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return data == MAP_FAILED ? nullptr : data;
}

// Maps up to one huge page more than needed and gives both ends back, which leaves an aligned block.
void* map_aligned(std::size_t bytes) {
  const std::size_t more = kHugePage - page_bytes();
  if (bytes > SIZE_MAX - more) return nullptr;
  void* raw = map_pages(bytes + more);
  if (raw == nullptr) return nullptr;
  auto* begin = static_cast<std::byte*>(raw);
  const std::size_t head = (kHugePage - reinterpret_cast<std::uintptr_t>(raw) % kHugePage) % kHugePage;
  if (head > 0) munmap(begin, head);
  if (head < more) munmap(begin + head + bytes, more - head);
  madvise(begin + head, bytes, MADV_HUGEPAGE);  // a wish: without huge pages everything still works
  return begin + head;
}

void* take(std::size_t bytes) {
  if (bytes > SIZE_MAX - kHugePage) return nullptr;
  if (bytes >= kHugePage) return map_aligned(round_up(bytes, page_bytes()));
  if (bytes >= kMapped) return map_pages(round_up(bytes, page_bytes()));
  const std::size_t rounded = round_up(bytes == 0 ? 1 : bytes, kSmallAlignment);
  void* data = std::aligned_alloc(kSmallAlignment, rounded);
  if (data != nullptr) std::memset(data, 0, rounded);
  return data;
}

}  // namespace

// Adds to what is in use, unless that passes the budget.
void HostMemory::count(std::int64_t bytes) {
  std::int64_t used = bytes_.load(std::memory_order_relaxed);
  do {
    if (bytes > budget_ - used) {
      throw DeviceError(
          fmt::format("the memory budget is used up: {} bytes wanted, {} of {} in use", bytes, used, budget_));
    }
  } while (!bytes_.compare_exchange_weak(used, used + bytes, std::memory_order_relaxed));
}

Buffer HostMemory::allocate(std::int64_t bytes) {
  if (bytes < 0) throw std::invalid_argument(fmt::format("allocate: {} bytes", bytes));
  const auto size = static_cast<std::size_t>(bytes);
  count(bytes);
  void* data = take(size);
  if (data == nullptr) {
    const std::int64_t others = bytes_.fetch_sub(bytes, std::memory_order_relaxed) - bytes;
    throw DeviceError(
        fmt::format("out of host memory: {} bytes wanted, {} bytes in use by this backend", bytes, others));
  }
  const std::int64_t now = bytes_allocated();
  std::int64_t peak = peak_bytes();
  while (peak < now && !peak_.compare_exchange_weak(peak, now, std::memory_order_relaxed)) {
  }
  return Buffer(data, size, &HostMemory::release, this);
}

void HostMemory::release(void* context, void* data, std::size_t bytes) noexcept {
  if (bytes >= kMapped) {
    munmap(data, round_up(bytes, page_bytes()));
  } else {
    std::free(data);
  }
  static_cast<HostMemory*>(context)->bytes_.fetch_sub(static_cast<std::int64_t>(bytes), std::memory_order_relaxed);
}

}  // namespace stagecoach
