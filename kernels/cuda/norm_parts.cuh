// Layer norm of one row by a whole block of kNormThreads, for every kernel that normalises: one order of additions and
// roundings, so that a row has the same bits wherever it is done.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace stagecoach::cuda {

inline constexpr int kNormThreads = 256;
inline constexpr int kNormWarps = kNormThreads / 32;

// The sum over the block's threads, in every thread. `partial` (kNormWarps) is shared.
__device__ inline float block_sum(float value, float* partial) {
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffU, value, distance);
  __syncthreads();  // the previous sum has been read
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  float sum = 0.0F;
  for (int w = 0; w < kNormWarps; ++w) sum += partial[w];
  return sum;
}

struct RowStatistics {
  float mean;
  float inverse;  // 1 / sqrt(variance + epsilon)
};
// In every thread.
__device__ inline RowStatistics statistics_of(const float* row, std::int64_t cols, float epsilon, float* partial) {
  float sum = 0.0F;
  for (std::int64_t c = threadIdx.x; c < cols; c += kNormThreads) sum += row[c];
  const float mean = block_sum(sum, partial) / static_cast<float>(cols);
  float squares = 0.0F;
  for (std::int64_t c = threadIdx.x; c < cols; c += kNormThreads) {
    squares = fmaf(row[c] - mean, row[c] - mean, squares);
  }
  const float variance = block_sum(squares, partial) / static_cast<float>(cols);
  return {mean, 1.0F / sqrtf(variance + epsilon)};
}

__device__ inline float normalised(RowStatistics s, float x, float gain, float bias) {
  return fmaf((x - s.mean) * s.inverse, gain, bias);
}

}  // namespace stagecoach::cuda
