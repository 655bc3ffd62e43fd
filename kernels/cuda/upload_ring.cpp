#include "kernels/cuda/upload_ring.hpp"

#include <algorithm>
#include <bit>

namespace stagecoach::cuda {

std::byte* UploadRing::claim(std::size_t bytes) {
  current_ = (current_ + 1) % slots_.size();
  Slot& slot = slots_[current_];
  if (slot.sent) check(cudaEventSynchronize(slot.sent.get()));
  if (slot.bytes < bytes) {
    slot.bytes = std::bit_ceil(std::max<std::size_t>(bytes, 4096));
    slot.memory.reset();
    slot.memory = make_pinned(slot.bytes);
  }
  return static_cast<std::byte*>(slot.memory.get());
}

void UploadRing::send(void* device, std::size_t bytes, cudaStream_t stream) {
  Slot& slot = slots_[current_];
  if (!slot.sent) slot.sent = make_event();
  check(cudaMemcpyAsync(device, slot.memory.get(), bytes, cudaMemcpyHostToDevice, stream));
  check(cudaEventRecord(slot.sent.get(), stream));
}

}  // namespace stagecoach::cuda
