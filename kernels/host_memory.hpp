// Host memory of one backend: zeroed, aligned, counted.
//
// Blocks of 2 MiB and more are aligned to 2 MiB and come from the kernel as untouched zero pages with huge
// pages asked for, so that the threads that fill them place them. Must outlive the buffers it gave out.
// Counting is thread-safe.
#pragma once

#include <atomic>
#include <cstdint>

#include "kernels/tensor.hpp"

namespace stagecoach {

class HostMemory {
 public:
  HostMemory() = default;
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;

  // Zeroed, aligned to 64 bytes or more, not null even for 0 bytes. Throws DeviceError with the size when
  // there is none left and std::invalid_argument for a negative size.
  Buffer allocate(std::int64_t bytes);
  std::int64_t bytes_allocated() const { return bytes_.load(std::memory_order_relaxed); }
  std::int64_t peak_bytes() const { return peak_.load(std::memory_order_relaxed); }

 private:
  static void release(void* context, void* data, std::size_t bytes) noexcept;

  std::atomic<std::int64_t> bytes_{0};
  std::atomic<std::int64_t> peak_{0};
};

}  // namespace stagecoach
