// Host memory in which data waits for its copy to the device, so that the caller's may be reused at once.
//
// Pinned slots used in turn; a slot is written again only when the copy out of it has ended. There are more slots than
// the operations of one microbatch need, so that nobody waits here while the stream waits for rows of a peer, which may
// be lost: many for what is small, and a few for pieces of weights. The small ones are there from the start, for to pin
// memory may wait for the device, too; the others are by the time that weights are loaded.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cstddef>

#include "kernels/cuda/handles.hpp"

namespace stagecoach::cuda {

class UploadRing {
 public:
  UploadRing();
  // Room for `bytes`, waiting for the copy that used it last. Grows to the largest size asked for.
  std::byte* claim(std::size_t bytes);
  // Queues the copy of the first `bytes` of the slot claimed last.
  void send(void* device, std::size_t bytes, cudaStream_t stream);

 private:
  struct Slot {
    Pinned memory;  // of large ones
    std::byte* begin = nullptr;
    std::size_t bytes = 0;
    Event sent;  // null until its first copy
  };
  static constexpr std::size_t kSmallSlots = 32, kSmallBytes = 64 << 10;

  Pinned small_memory_;
  std::array<Slot, kSmallSlots> small_;
  std::array<Slot, 8> large_;
  std::size_t next_small_ = 0;
  std::size_t next_large_ = 0;
  Slot* current_ = nullptr;
};

}  // namespace stagecoach::cuda
