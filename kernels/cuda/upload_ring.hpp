// Host memory in which data waits for its copy to the device, so that the caller's may be reused at once.
//
// A few pinned slots used in turn; a slot is written again only when the copy out of it has ended. There are more slots
// than the operations of one microbatch need, so that nobody waits here while the stream waits for rows of a peer,
// which may be lost.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cstddef>

#include "kernels/cuda/handles.hpp"

namespace stagecoach::cuda {

class UploadRing {
 public:
  // Room for `bytes`, waiting for the copy that used it last. Grows to the largest size asked for.
  std::byte* claim(std::size_t bytes);
  // Queues the copy of the first `bytes` of the slot claimed last.
  void send(void* device, std::size_t bytes, cudaStream_t stream);

 private:
  struct Slot {
    Pinned memory;
    std::size_t bytes = 0;
    Event sent;  // null until its first copy
  };
  std::array<Slot, 8> slots_;
  std::size_t current_ = 0;
};

}  // namespace stagecoach::cuda
