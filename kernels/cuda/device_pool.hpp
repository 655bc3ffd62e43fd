// All memory of one device that a backend gives out: one allocation, made at the start.
//
// Must outlive the buffers that it gave out. Not thread-safe: one thread at a time allocates and lets go.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/cuda/pool.hpp"
#include "kernels/tensor.hpp"

namespace stagecoach::cuda {

class DevicePool {
 public:
  // Takes `bytes` of the current device; `device` names it in messages. Throws DeviceError with what is free.
  DevicePool(std::string device, std::int64_t bytes);
  DevicePool(const DevicePool&) = delete;
  DevicePool& operator=(const DevicePool&) = delete;

  // Not cleared. Throws DeviceError with what is left, std::invalid_argument for a negative size.
  Buffer allocate(std::int64_t bytes);
  // Makes `buffer` one of at least `bytes`, its contents lost where it was smaller; grows to twice what is asked for,
  // so that it soon stops growing. Safe for memory that a stream's work uses in order.
  void* at_least(Buffer& buffer, std::int64_t bytes);
  std::int64_t bytes() const { return bytes_; }
  std::int64_t used() const { return map_.used(); }
  std::int64_t peak() const { return map_.peak(); }

 private:
  struct Free {
    void operator()(std::byte* memory) const noexcept { cudaFree(memory); }
  };
  static void release(void* pool, void* data, std::size_t bytes) noexcept;

  std::string device_;
  std::int64_t bytes_;
  std::unique_ptr<std::byte, Free> memory_;
  PoolMap map_;
};

}  // namespace stagecoach::cuda
