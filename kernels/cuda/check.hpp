// Results of CUDA and cuBLASLt calls: anything but success becomes a DeviceError that names the call's place.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <source_location>

namespace stagecoach::cuda {

void check(cudaError_t result, const std::source_location& where = std::source_location::current());
void check(cublasStatus_t result, const std::source_location& where = std::source_location::current());

}  // namespace stagecoach::cuda
