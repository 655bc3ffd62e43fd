// Host memory of one backend: zeroed, aligned, counted, and kept within a budget where there is one.
//
// Blocks of 64 KiB and more come from the kernel as untouched zero pages of their own, so that the threads that fill
// them place them, no page is touched before it is needed, and all of it goes back to the kernel when it is let go.
// Blocks of 2 MiB and more are aligned to that, with huge pages asked for; none is rounded up to whole huge pages,
// which small matrices would feel. Must outlive the buffers it gave out. Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <limits>

#include "kernels/tensor.hpp"

namespace stagecoach {

class HostMemory {
 public:
  static constexpr std::int64_t kPaged = std::int64_t{64} << 10;  // blocks from here on begin with a page
  static constexpr std::int64_t kUnlimited = std::numeric_limits<std::int64_t>::max();

  // `budget`: bytes that may be given out at once.
  explicit HostMemory(std::int64_t budget = kUnlimited) : budget_(budget) {}
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;

  // Zeroed, aligned to 64 bytes or more (from 64 KiB on to a page), not null even for 0 bytes. Throws DeviceError with
  // the size when it would pass the budget or there is none left, and std::invalid_argument for a negative size.
  Buffer allocate(std::int64_t bytes);
  std::int64_t bytes_allocated() const { return bytes_.load(std::memory_order_relaxed); }
  std::int64_t peak_bytes() const { return peak_.load(std::memory_order_relaxed); }
  std::int64_t budget() const { return budget_; }

 private:
  static void release(void* context, void* data, std::size_t bytes) noexcept;
  void count(std::int64_t bytes);

  const std::int64_t budget_;
  std::atomic<std::int64_t> bytes_{0};
  std::atomic<std::int64_t> peak_{0};
};

}  // namespace stagecoach
