#include "kernels/host_memory.hpp"

#include <fmt/format.h>
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "kernels/backend.hpp"

namespace stagecoach {
namespace {

constexpr std::size_t kSmallAlignment = 64;
constexpr std::size_t kHugePage = std::size_t{2} << 20;

std::size_t round_up(std::size_t bytes, std::size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

// Maps one huge page more than needed and gives both ends back, which leaves an aligned block. Null when
// there is none.
void* map_huge(std::size_t bytes) {
  const std::size_t want = round_up(bytes, kHugePage);
  if (want < bytes || want > SIZE_MAX - kHugePage) return nullptr;
  void* raw = mmap(nullptr, want + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  auto* begin = static_cast<std::byte*>(raw);
  const std::size_t head = (kHugePage - reinterpret_cast<std::uintptr_t>(raw) % kHugePage) % kHugePage;
  if (head > 0) munmap(begin, head);
  munmap(begin + head + want, kHugePage - head);
  madvise(begin + head, want, MADV_HUGEPAGE);  // a wish: without huge pages everything still works
  return begin + head;
}

}  // namespace

Buffer HostMemory::allocate(std::int64_t bytes) {
  if (bytes < 0) throw std::invalid_argument(fmt::format("allocate: {} bytes", bytes));
  const auto size = static_cast<std::size_t>(bytes);
  void* data = nullptr;
  if (size >= kHugePage) {
    data = map_huge(size);
  } else {
    const std::size_t rounded = round_up(size == 0 ? 1 : size, kSmallAlignment);
    data = std::aligned_alloc(kSmallAlignment, rounded);
    if (data != nullptr) std::memset(data, 0, rounded);
  }
  if (data == nullptr) {
    throw DeviceError(
        fmt::format("out of host memory: {} bytes wanted, {} bytes in use by this backend", bytes, bytes_allocated()));
  }
  const std::int64_t now = bytes_.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  std::int64_t peak = peak_.load(std::memory_order_relaxed);
  while (peak < now && !peak_.compare_exchange_weak(peak, now, std::memory_order_relaxed)) {
  }
  return Buffer(data, size, &HostMemory::release, this);
}

void HostMemory::release(void* context, void* data, std::size_t bytes) noexcept {
  if (bytes >= kHugePage) {
    munmap(data, round_up(bytes, kHugePage));
  } else {
    std::free(data);
  }
  static_cast<HostMemory*>(context)->bytes_.fetch_sub(static_cast<std::int64_t>(bytes), std::memory_order_relaxed);
}

}  // namespace stagecoach
