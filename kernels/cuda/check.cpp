#include "kernels/cuda/check.hpp"

#include <fmt/format.h>

#include "kernels/backend.hpp"

namespace stagecoach::cuda {

void check(cudaError_t result, const std::source_location& where) {
  if (result == cudaSuccess) return;
  cudaGetLastError();  // the runtime would hand a passing error to the next launch as well
  throw DeviceError(
      fmt::format("CUDA: {} ({}, in {})", cudaGetErrorString(result), cudaGetErrorName(result), where.function_name()));
}

void check(cublasStatus_t result, const std::source_location& where) {
  if (result == CUBLAS_STATUS_SUCCESS) return;
  throw DeviceError(fmt::format("cuBLASLt: {} (in {})", cublasLtGetStatusString(result), where.function_name()));
}

}  // namespace stagecoach::cuda
