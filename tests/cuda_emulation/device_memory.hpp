// The memory of one emulated device: a range of addresses that host code cannot touch, because it is open only while
// device work runs. Allocations stand apart; what lies between them is poisoned for the address sanitizer, and checked
// for writes without it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>

namespace stagecoach::cuda_emulation {

class DeviceMemory {
 public:
  explicit DeviceMemory(std::size_t limit_bytes);
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  // Aligned to 256 bytes and filled with 0xFF; null when the limit does not allow it.
  void* allocate(std::size_t bytes);
  // False when no allocation begins there.
  bool release(void* pointer);

  bool owns_address(const void* pointer) const;
  // The range lies inside one allocation.
  bool holds(const void* pointer, std::size_t bytes) const;

  std::size_t limit_bytes() const { return limit_bytes_; }
  std::size_t used_bytes() const { return used_bytes_; }
  std::size_t live_bytes() const { return live_bytes_; }
  std::size_t allocations() const { return allocations_.size(); }

  // Lets the process touch the allocations, or not.
  void open();
  void close();
  // Null (also while closed), or the allocation behind which something was written. Repairs it.
  const void* damaged();

 private:
  struct Allocation {
    std::size_t bytes;     // asked for
    std::size_t reserved;  // with what keeps it apart from the next
  };
  std::size_t limit_bytes_;
  std::size_t range_bytes_;
  void* mapped_ = nullptr;  // with what is before and after the range
  std::size_t mapped_bytes_ = 0;
  std::byte* base_ = nullptr;
  std::size_t used_bytes_ = 0, live_bytes_ = 0;
  std::size_t high_ = 0;  // the end of the huge page beyond which no allocation ever was
  bool open_ = false;
  std::map<std::size_t, Allocation> allocations_;  // by offset
};

}  // namespace stagecoach::cuda_emulation
