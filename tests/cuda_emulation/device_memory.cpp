#include "tests/cuda_emulation/device_memory.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <iterator>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace stagecoach::cuda_emulation {
namespace {

constexpr std::size_t kAlignment = 256;
constexpr std::size_t kApart = 256;
constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr int kGapByte = 0xC5;
constexpr int kFreshByte = 0xFF;                              // NaN in every float type
constexpr std::size_t kFilledBytes = std::size_t{256} << 20;  // of larger allocations the rest stays as it is

std::size_t round_up(std::size_t bytes, std::size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

void forbid([[maybe_unused]] const std::byte* from, [[maybe_unused]] std::size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(from, bytes);
#endif
}
void permit([[maybe_unused]] const std::byte* from, [[maybe_unused]] std::size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(from, bytes);
#endif
}

}  // namespace

DeviceMemory::DeviceMemory(std::size_t limit_bytes)
    : limit_bytes_(limit_bytes), range_bytes_(round_up(2 * limit_bytes + (std::size_t{64} << 20), kHugePage)) {
  // Of huge pages alone: opening and closing then takes a five-hundredth of the time.
  mapped_bytes_ = range_bytes_ + kHugePage;
  mapped_ = mmap(nullptr, mapped_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped_ == MAP_FAILED) throw std::bad_alloc();
  base_ = reinterpret_cast<std::byte*>(round_up(reinterpret_cast<std::uintptr_t>(mapped_), kHugePage));
  madvise(base_, range_bytes_, MADV_HUGEPAGE);
  forbid(base_, kApart);
}

DeviceMemory::~DeviceMemory() {
  permit(base_, std::max(high_, kApart));
  munmap(mapped_, mapped_bytes_);
}

void* DeviceMemory::allocate(std::size_t bytes) {
  const std::size_t counted = round_up(bytes, kAlignment);
  if (bytes > limit_bytes_ || counted > limit_bytes_ - std::min(used_bytes_, limit_bytes_)) return nullptr;
  const std::size_t reserved = counted + kApart;
  std::size_t offset = kApart;  // the first gap that is large enough
  for (const auto& [begin, allocation] : allocations_) {
    if (begin - offset >= reserved) break;
    offset = begin + allocation.reserved;
  }
  if (offset + reserved > range_bytes_) return nullptr;
  allocations_[offset] = {bytes, reserved};
  used_bytes_ += counted;
  live_bytes_ += bytes;
  const bool was_open = open_;
  high_ = std::max(high_, round_up(offset + reserved, kHugePage));
  open();
  std::byte* const memory = base_ + offset;
  permit(memory, reserved);
  std::memset(memory, kFreshByte, std::min(bytes, kFilledBytes));
  std::memset(memory + bytes, kGapByte, reserved - bytes);
  forbid(memory + bytes, reserved - bytes);
  if (!was_open) close();
  return memory;
}

bool DeviceMemory::release(void* pointer) {
  if (!owns_address(pointer)) return false;
  const auto found = allocations_.find(static_cast<std::size_t>(static_cast<std::byte*>(pointer) - base_));
  if (found == allocations_.end()) return false;
  const auto [offset, allocation] = *found;
  allocations_.erase(found);
  used_bytes_ -= allocation.reserved - kApart;
  live_bytes_ -= allocation.bytes;
  // Whole huge pages of it go back to the system and read as zeros.
  const std::size_t first = round_up(offset, kHugePage), last = (offset + allocation.bytes) / kHugePage * kHugePage;
  if (last > first) madvise(base_ + first, last - first, MADV_DONTNEED);
  forbid(base_ + offset, allocation.reserved);
  return true;
}

bool DeviceMemory::owns_address(const void* pointer) const {
  return !std::less<>{}(pointer, static_cast<const void*>(base_)) &&
         std::less<>{}(pointer, static_cast<const void*>(base_ + range_bytes_));
}

bool DeviceMemory::holds(const void* pointer, std::size_t bytes) const {
  if (!owns_address(pointer)) return false;
  const auto offset = static_cast<std::size_t>(static_cast<const std::byte*>(pointer) - base_);
  auto found = allocations_.upper_bound(offset);
  if (found == allocations_.begin()) return false;
  --found;
  const std::size_t inside = offset - found->first;
  return inside <= found->second.bytes && bytes <= found->second.bytes - inside;
}

// Also called when open, after an allocation beyond the old end.
void DeviceMemory::open() {
  if (high_ > 0) mprotect(base_, high_, PROT_READ | PROT_WRITE);
  open_ = true;
}

void DeviceMemory::close() {
  if (high_ > 0) mprotect(base_, high_, PROT_NONE);
  open_ = false;
}

const void* DeviceMemory::damaged() {
#if !defined(__SANITIZE_ADDRESS__)
  if (!open_) return nullptr;
  for (const auto& [offset, allocation] : allocations_) {
    std::byte* const gap = base_ + offset + allocation.bytes;
    const std::size_t bytes = allocation.reserved - allocation.bytes;
    if (std::all_of(gap, gap + bytes, [](std::byte b) { return b == std::byte{kGapByte}; })) continue;
    std::memset(gap, kGapByte, bytes);
    return base_ + offset;
  }
#endif
  return nullptr;
}

}  // namespace stagecoach::cuda_emulation
