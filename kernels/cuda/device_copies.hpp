// Copies between host and device beside the operations of a stream, on a stream of their own, ordered by events.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <vector>

#include "kernels/cuda/handles.hpp"
#include "kernels/tensor.hpp"

namespace stagecoach::cuda {

class DeviceCopies {
 public:
  DeviceCopies() : stream_(make_stream()) {}

  // After what is queued on `operations` so far.
  std::uint64_t download(cudaStream_t operations, void* host, const void* device, std::int64_t bytes);
  // Before what is queued on `operations` from now on.
  std::uint64_t upload(cudaStream_t operations, void* device, const void* host, std::int64_t bytes);
  // Asked until it says true, once; then the copy's number is forgotten.
  bool finished(std::uint64_t copy);
  // Waits for all of them.
  void synchronize() { check(cudaStreamSynchronize(stream_.get())); }

 private:
  Event event();
  std::uint64_t start(void* to, const void* from, std::int64_t bytes, cudaMemcpyKind kind);

  Stream stream_;
  std::uint64_t last_ = 0;
  std::map<std::uint64_t, Event> open_;  // recorded when the copy ends
  std::vector<Event> spare_;
};

}  // namespace stagecoach::cuda
