#include "kernels/cuda/device_pool.hpp"

#include <fmt/format.h>

#include "kernels/backend.hpp"
#include "kernels/cuda/check.hpp"

namespace stagecoach::cuda {
namespace {

std::string mebibytes(std::int64_t bytes) {
  return fmt::format("{} MiB", bytes >> 20);
}

std::int64_t free_bytes() {
  std::size_t free = 0;
  std::size_t total = 0;
  check(cudaMemGetInfo(&free, &total));
  return static_cast<std::int64_t>(free);
}

std::byte* take_memory(const std::string& device, std::int64_t bytes) {
  void* memory = nullptr;
  const cudaError_t result = cudaMalloc(&memory, static_cast<std::size_t>(bytes));
  if (result == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw DeviceError(
        fmt::format("{}: {} wanted, {} free; end what else runs there, or take less with "
                    "--memory-per-rank",
                    device, mebibytes(bytes), mebibytes(free_bytes())));
  }
  check(result);
  return static_cast<std::byte*>(memory);
}

}  // namespace

DevicePool::DevicePool(std::string device, std::int64_t bytes)
    : device_(std::move(device)),
      bytes_(bytes / PoolMap::kAlignment * PoolMap::kAlignment),
      memory_(take_memory(device_, bytes_)),
      map_(bytes_) {}

Buffer DevicePool::allocate(std::int64_t bytes) {
  if (bytes < 0) throw std::invalid_argument(fmt::format("cannot allocate {} bytes", bytes));
  const std::optional<std::int64_t> offset = map_.take(bytes);
  if (!offset) {
    throw DeviceError(fmt::format("{}: {} wanted, {} of {} left", device_, mebibytes(bytes),
                                  mebibytes(map_.largest_free()), mebibytes(bytes_)));
  }
  return {memory_.get() + *offset, static_cast<std::size_t>(bytes), release, this};
}

void* DevicePool::at_least(Buffer& buffer, std::int64_t bytes) {
  if (static_cast<std::int64_t>(buffer.bytes()) < bytes) {
    const bool first = !buffer;
    buffer = Buffer();
    buffer = allocate(first ? bytes : 2 * bytes);
  }
  return buffer.data();
}

void DevicePool::release(void* pool, void* data, std::size_t bytes) noexcept {
  auto* self = static_cast<DevicePool*>(pool);
  self->map_.give_back(static_cast<std::byte*>(data) - self->memory_.get(), static_cast<std::int64_t>(bytes));
}

}  // namespace stagecoach::cuda
