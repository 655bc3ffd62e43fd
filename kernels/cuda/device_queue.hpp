// What a transport that moves tensors on the device itself knows of a CUDA backend: the stream of its operations, to
// order its own with by events. The backend owns it.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/check.hpp"

namespace stagecoach::cuda {

struct DeviceQueue {
  int device = 0;
  cudaStream_t stream = nullptr;

  // The current device belongs to the calling thread.
  void enter() const { check(cudaSetDevice(device)); }
};

}  // namespace stagecoach::cuda
