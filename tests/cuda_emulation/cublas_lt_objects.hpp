// What cuBLASLt's handles stand for, and what its calls share.
#pragma once

#include "tests/cuda_emulation/include/cublasLt.h"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>

#include "tests/cuda_emulation/machine_state.hpp"

struct cublasLtContext {};
struct cublasLtMatmulDescOpaque {
  cublasComputeType_t compute;
  std::int32_t trans_a = CUBLAS_OP_N, trans_b = CUBLAS_OP_N;
  std::uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  const void* bias = nullptr;
  std::optional<std::int32_t> bias_type = {};
};
struct cublasLtMatrixLayoutOpaque {
  std::int32_t type;
  std::uint64_t rows, columns;
  std::int64_t leading;
};
struct cublasLtMatmulPreferenceOpaque {
  std::uint64_t workspace_bytes = 0;
  std::uint32_t alignment[4] = {256, 256, 256, 256};  // of a, b, c, d
};

namespace stagecoach::cuda_emulation {

template <Kind kKind = Kind::kUses, typename Body>
cublasStatus_t counted_cublas(const char* name, Body body) {
  Machine& m = machine();
  const std::lock_guard lock(m.mutex);
  const cudaError_t early = begin_call(m, name);
  cublasStatus_t result = CUBLAS_STATUS_SUCCESS;
  if (kKind == Kind::kReleases || early == cudaSuccess) result = body(m);
  if (early == cudaErrorMemoryAllocation) return CUBLAS_STATUS_ALLOC_FAILED;
  if (early == cudaErrorInsufficientDriver || early == cudaErrorNoDevice) return CUBLAS_STATUS_NOT_INITIALIZED;
  return early == cudaSuccess ? result : CUBLAS_STATUS_EXECUTION_FAILED;
}

template <typename... T>
bool all_alive(const Machine& m, const T*... objects) {
  return (m.cublas_objects.contains(objects) && ...);
}

template <typename T>
cublasStatus_t take(T& to, const void* value, std::size_t bytes) {
  if (value == nullptr || bytes != sizeof(T)) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(&to, value, bytes);
  return CUBLAS_STATUS_SUCCESS;
}

}  // namespace stagecoach::cuda_emulation
