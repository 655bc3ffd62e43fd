#include "kernels/cuda/upload_ring.hpp"

#include <bit>

namespace stagecoach::cuda {

UploadRing::UploadRing() : small_memory_(make_pinned(kSmallSlots * kSmallBytes)) {
  auto* next = static_cast<std::byte*>(small_memory_.get());
  for (Slot& slot : small_) {
    slot.begin = next;
    slot.bytes = kSmallBytes;
    next += kSmallBytes;
  }
}

std::byte* UploadRing::claim(std::size_t bytes) {
  const bool small = bytes <= kSmallBytes;
  Slot& slot = small ? small_[next_small_++ % small_.size()] : large_[next_large_++ % large_.size()];
  current_ = &slot;
  if (slot.sent) check(cudaEventSynchronize(slot.sent.get()));
  if (slot.bytes < bytes) {
    slot.bytes = 0;
    slot.memory.reset();
    const std::size_t room = std::bit_ceil(bytes);
    slot.memory = make_pinned(room);
    slot.begin = static_cast<std::byte*>(slot.memory.get());
    slot.bytes = room;
  }
  return slot.begin;
}

void UploadRing::send(void* device, std::size_t bytes, cudaStream_t stream) {
  Slot& slot = *current_;
  if (!slot.sent) slot.sent = make_event();
  check(cudaMemcpyAsync(device, slot.begin, bytes, cudaMemcpyHostToDevice, stream));
  check(cudaEventRecord(slot.sent.get(), stream));
}

}  // namespace stagecoach::cuda
