// y(r, n) = epilogue(sum over k of x(r, k) w(n, k) + bias(n)), w (out, in) as in device_matrix.hpp.
//
// 16-bit matrices, tensor_kernel: a block takes 16 * M outputs and 8 * N rows; its warps share the inputs in steps of
// 32, warp s the steps s, s + kSlices, ... In a step lane 4g + t loads inputs 8t to 8t + 7 of outputs g and g + 8 and
// of row g, 16 bytes each, straight from memory, and feeds them to two products of 16 inputs: which input counts as
// which is free as long as both operands agree. At the end the warps' sums are added in order. With one or two rows
// each block may normalise its inputs itself, which saves a launch and a pass. float32 matrices,
// lane_kernel: a warp takes one output and up to kLaneRows rows, its lanes every 32nd group of 4 inputs; their sums are
// added in a tree. Shapes whose rows are not whole loads of 16 bytes: plain_kernel, a thread per element.
#include <algorithm>
#include <cstdint>

#include "kernels/cuda/device_matrix.hpp"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/few_rows.hpp"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/machine.cuh"
#include "kernels/cuda/norm_parts.cuh"

namespace stagecoach::cuda {
namespace {

constexpr int kSlices = 8;      // warps of a block
constexpr int kStep = 32;       // inputs
constexpr int kLoadsAhead = 4;  // steps loaded before they are used
constexpr int kLaneRows = 8;
constexpr int kLaneWarps = 8;
constexpr int kPlainThreads = 128;

__device__ float activate(Activation activation, float x) {
  switch (activation) {
    case Activation::kNone:
      break;
    case Activation::kGeluTanh:
      return 0.5F * x * (1.0F + tanhf(0.7978845608028654F * (x + 0.044715F * x * x * x)));
    case Activation::kGeluErf:
      return 0.5F * x * (1.0F + erff(x * 0.7071067811865476F));
    case Activation::kRelu:
      return x < 0.0F ? 0.0F : x;
    case Activation::kSilu:
      return x / (1.0F + expf(-x));
  }
  return x;
}

// Where a product goes. T is the dtype of `out` and `bias`.
template <typename T>
struct Target {
  const T* bias;  // null without
  Activation activation;
  bool add;
  T* out;
  std::int64_t stride;

  __device__ void put(std::int64_t r, std::int64_t n, float sum) const {
    const float value = activate(activation, bias == nullptr ? sum : sum + widen(bias[n]));
    T& y = out[r * stride + n];
    y = narrow<T>(add ? widen(y) + value : value);
  }
};

template <typename T>
struct Operands {
  const T* x;
  std::int64_t x_stride;
  const T* w;
  std::int64_t w_stride;
  std::int64_t rows, in, out;
};

__device__ inline uint4 load_16_bytes(const void* address, bool valid) {
  return valid ? __ldg(static_cast<const uint4*>(address)) : make_uint4(0, 0, 0, 0);
}

// 16 bytes of the inputs, which may lie in shared memory.
template <bool kShared>
__device__ inline uint4 load_inputs(const void* address, bool valid) {
  if constexpr (!kShared) return load_16_bytes(address, valid);
  return valid ? *static_cast<const uint4*>(address) : make_uint4(0, 0, 0, 0);
}

// Layer norm of the inputs, float32, before they are rounded to T.
struct Norm {
  const float* x;
  std::int64_t x_stride;
  const float* gain;
  const float* bias;
  float epsilon;
};

template <int M, int N>
constexpr std::size_t sum_bytes() {
  return sizeof(float) * static_cast<std::size_t>(kSlices * 16 * M * 8 * N);
}

// The normalised rows to shared memory, behind the sums and what block_sum needs; meanwhile the block's weights come
// nearer.
template <typename T, int M, int N>
__device__ Operands<T> normalise(const Operands<T>& a, const Norm& norm) {
  constexpr int kLine = 128 / static_cast<int>(sizeof(T));
  const std::int64_t first_n = static_cast<std::int64_t>(blockIdx.x) * 16 * M;
  for (std::int64_t n = first_n; n < first_n + 16 * M && n < a.out; ++n) {
    for (std::int64_t k = static_cast<std::int64_t>(threadIdx.x) * kLine; k < a.in; k += kNormThreads * kLine) {
      prefetch(a.w + n * a.w_stride + k);
    }
  }
  auto* partial = reinterpret_cast<float*>(shared_memory() + sum_bytes<M, N>());
  auto* rows = reinterpret_cast<T*>(partial + kNormWarps);
  for (std::int64_t r = 0; r < a.rows; ++r) {
    const float* row = norm.x + r * norm.x_stride;
    const RowStatistics statistics = statistics_of(row, a.in, norm.epsilon, partial);
    for (std::int64_t k = threadIdx.x; k < a.in; k += kNormThreads) {
      rows[r * a.in + k] = narrow<T>(normalised(statistics, row[k], norm.gain[k], norm.bias[k]));
    }
  }
  __syncthreads();
  Operands<T> normal = a;
  normal.x = rows;
  normal.x_stride = a.in;
  return normal;
}

template <typename T, typename Y, int M, int N, bool kNorm>
__global__ void __launch_bounds__(kSlices * 32) tensor_kernel(Operands<T> given, Norm norm, Target<Y> target) {
  Operands<T> a = given;
  if constexpr (kNorm) a = normalise<T, M, N>(given, norm);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int slice = static_cast<int>(threadIdx.x) / 32;
  const int g = lane / 4;
  const int t = lane % 4;
  const std::int64_t first_n = static_cast<std::int64_t>(blockIdx.x) * 16 * M;
  const std::int64_t first_r = static_cast<std::int64_t>(blockIdx.y) * 8 * N;
  float sums[M][N][4] = {};
  constexpr int kAhead = M * N <= 2 ? kLoadsAhead : 2;
  for (std::int64_t begin = static_cast<std::int64_t>(slice) * kStep; begin < a.in; begin += kStep * kSlices * kAhead) {
    uint4 weights[kAhead][M][2];
    uint4 inputs[kAhead][N];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const std::int64_t k = begin + static_cast<std::int64_t>(i) * kStep * kSlices + 8 * t;
#pragma unroll
      for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const std::int64_t n = first_n + 16 * m + 8 * half + g;
          weights[i][m][half] = load_16_bytes(a.w + n * a.w_stride + k, n < a.out && k < a.in);
        }
      }
#pragma unroll
      for (int b = 0; b < N; ++b) {
        const std::int64_t r = first_r + 8 * b + g;
        inputs[i][b] = load_inputs<kNorm>(a.x + r * a.x_stride + k, r < a.rows && k < a.in);
      }
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
#pragma unroll
      for (int m = 0; m < M; ++m) {
        const uint4 low = weights[i][m][0];
        const uint4 high = weights[i][m][1];
#pragma unroll
        for (int b = 0; b < N; ++b) {
          const uint4 x = inputs[i][b];
          multiply_add<T>(sums[m][b], {low.x, high.x, low.y, high.y}, {x.x, x.y});
          multiply_add<T>(sums[m][b], {low.z, high.z, low.w, high.w}, {x.z, x.w});
        }
      }
    }
  }
  // The warps' sums as (slice, row, output).
  auto* shared = reinterpret_cast<float*>(shared_memory());
  constexpr int kOutputs = 16 * M;
  constexpr int kElements = kOutputs * 8 * N;
#pragma unroll
  for (int m = 0; m < M; ++m) {
#pragma unroll
    for (int b = 0; b < N; ++b) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int n = 16 * m + g + i / 2 * 8;
        const int r = 8 * b + 2 * t + i % 2;
        shared[slice * kElements + r * kOutputs + n] = sums[m][b][i];
      }
    }
  }
  __syncthreads();
  for (int e = static_cast<int>(threadIdx.x); e < kElements; e += kSlices * 32) {
    const std::int64_t r = first_r + e / kOutputs;
    const std::int64_t n = first_n + e % kOutputs;
    if (r >= a.rows || n >= a.out) continue;
    float sum = 0.0F;
    for (int s = 0; s < kSlices; ++s) sum += shared[s * kElements + e];
    target.put(r, n, sum);
  }
}

template <typename Y, int R>
__global__ void __launch_bounds__(kLaneWarps * 32) lane_kernel(Operands<float> a, Target<Y> target) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t n = static_cast<std::int64_t>(blockIdx.x) * kLaneWarps + threadIdx.x / 32;
  const std::int64_t first_r = static_cast<std::int64_t>(blockIdx.y) * R;
  if (n >= a.out) return;  // whole warps
  float sums[R] = {};
#pragma unroll 4
  for (std::int64_t k = 4 * lane; k < a.in; k += 128) {
    const float4 w = __ldg(reinterpret_cast<const float4*>(a.w + n * a.w_stride + k));
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (first_r + r >= a.rows) continue;
      const float4 x = __ldg(reinterpret_cast<const float4*>(a.x + (first_r + r) * a.x_stride + k));
      sums[r] = fmaf(x.w, w.w, fmaf(x.z, w.z, fmaf(x.y, w.y, fmaf(x.x, w.x, sums[r]))));
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
    for (int distance = 16; distance > 0; distance /= 2) {
      sums[r] += __shfl_xor_sync(0xffffffffU, sums[r], distance);
    }
    if (lane == 0 && first_r + r < a.rows) target.put(first_r + r, n, sums[r]);
  }
}

template <typename X, typename W, typename Y>
__global__ void plain_kernel(const X* x, std::int64_t x_stride, const W* w, std::int64_t w_stride, std::int64_t rows,
                             std::int64_t in, std::int64_t out, Target<Y> target) {
  const std::int64_t n = static_cast<std::int64_t>(blockIdx.x) * kPlainThreads + threadIdx.x;
  if (n >= out) return;
  for (std::int64_t r = blockIdx.y; r < rows; r += gridDim.y) {
    float sum = 0.0F;
    for (std::int64_t k = 0; k < in; ++k) sum = fmaf(widen(x[r * x_stride + k]), widen(w[n * w_stride + k]), sum);
    target.put(r, n, sum);
  }
}

template <typename Y>
__global__ void finish_kernel(const float* sums, std::int64_t stride, Target<Y> target, std::int64_t cols) {
  const std::int64_t r = blockIdx.x;
  for (std::int64_t c = threadIdx.x; c < cols; c += blockDim.x) target.put(r, c, sums[r * stride + c]);
}

unsigned blocks_of(std::int64_t count, std::int64_t per_block) {
  return static_cast<unsigned>((count + per_block - 1) / per_block);
}

bool aligned_16(Tensor t) {
  return reinterpret_cast<std::uintptr_t>(t.data) % 16 == 0 && t.stride * size_of(t.dtype) % 16 == 0;
}

template <typename Y>
Target<Y> target_of(Tensor bias, Epilogue epilogue, Tensor out) {
  return {static_cast<const Y*>(bias.data), epilogue.activation, epilogue.add_to_output, static_cast<Y*>(out.data),
          out.stride};
}

template <typename T>
Operands<T> operands_of(Tensor x, const Matrix& w) {
  const Tensor table = as_tensor(w);
  return {
      static_cast<const T*>(x.data), x.stride, static_cast<const T*>(table.data), table.stride, x.rows, w.in, w.out};
}

template <typename T, typename Y>
void tensor_linear(cudaStream_t stream, Tensor x, const Matrix& w, const Target<Y>& target) {
  const Operands<T> operands = operands_of<T>(x, w);
  const auto run = [&](auto kernel, int m, int n) {
    launch(stream,
           {dim3(blocks_of(w.out, 16 * m), blocks_of(x.rows, 8 * n)), dim3(kSlices * 32),
            sizeof(float) * static_cast<std::size_t>(kSlices * 16 * m * 8 * n)},
           kernel, operands, Norm{}, target);
  };
  if (x.rows <= 8) return run(tensor_kernel<T, Y, 1, 1, false>, 1, 1);
  if (x.rows <= 16) return run(tensor_kernel<T, Y, 1, 2, false>, 1, 2);
  run(tensor_kernel<T, Y, 2, 4, false>, 2, 4);
}

// Shared memory of normalise with M = N = 1.
std::size_t norm_bytes(std::int64_t rows, const Matrix& w) {
  return sum_bytes<1, 1>() + kNormWarps * sizeof(float) + static_cast<std::size_t>(rows * w.in * size_of(w.dtype));
}

template <typename T, typename Y>
void norm_tensor_linear(cudaStream_t stream, Tensor x, const Norm& norm, const Matrix& w, const Target<Y>& target) {
  Operands<T> operands = operands_of<T>(x, w);
  operands.x = nullptr;  // x is not of T: `norm` has it
  launch(stream, {dim3(blocks_of(w.out, 16)), dim3(kSlices * 32), norm_bytes(x.rows, w)},
         tensor_kernel<T, Y, 1, 1, true>, operands, norm, target);
}

template <typename Y>
void lane_linear(cudaStream_t stream, Tensor x, const Matrix& w, const Target<Y>& target) {
  const Operands<float> operands = operands_of<float>(x, w);
  const auto run = [&](auto kernel, int rows) {
    launch(stream, {dim3(blocks_of(w.out, kLaneWarps), blocks_of(x.rows, rows)), dim3(kLaneWarps * 32)}, kernel,
           operands, target);
  };
  if (x.rows == 1) return run(lane_kernel<Y, 1>, 1);
  if (x.rows <= 4) return run(lane_kernel<Y, 4>, 4);
  run(lane_kernel<Y, kLaneRows>, kLaneRows);
}

template <typename Y>
void plain_linear(cudaStream_t stream, Tensor x, const Matrix& w, const Target<Y>& target) {
  const Tensor table = as_tensor(w);
  const Grid grid{dim3(blocks_of(w.out, kPlainThreads), static_cast<unsigned>(std::min<std::int64_t>(x.rows, 65535))),
                  dim3(kPlainThreads)};
  for_dtype(x.dtype, [&](auto a) {
    for_dtype(w.dtype, [&](auto b) {
      launch(stream, grid, plain_kernel<decltype(a), decltype(b), Y>, static_cast<const decltype(a)*>(x.data), x.stride,
             static_cast<const decltype(b)*>(table.data), table.stride, x.rows, w.in, w.out, target);
    });
  });
}

}  // namespace

void few_rows_linear(cudaStream_t stream, Tensor x, const Matrix& w, Tensor bias, Epilogue epilogue, Tensor out) {
  const bool whole_loads = w.in * size_of(w.dtype) % 16 == 0 && x.dtype == w.dtype && aligned_16(x);
  for_dtype(out.dtype, [&](auto y) {
    const Target<decltype(y)> target = target_of<decltype(y)>(bias, epilogue, out);
    if (!whole_loads) return plain_linear(stream, x, w, target);
    if (w.dtype == DType::kFloat32) return lane_linear(stream, x, w, target);
    if (w.dtype == DType::kFloat16) return tensor_linear<__half>(stream, x, w, target);
    tensor_linear<__nv_bfloat16>(stream, x, w, target);
  });
}

bool norm_fits_few_rows(Tensor x, const Matrix& w) {
  constexpr std::int64_t kFusedRows = 2;  // each block normalises all rows, one after another
  constexpr std::size_t kFreeShared = 48 * 1024;
  return x.rows >= 1 && x.rows <= kFusedRows && w.dtype != DType::kFloat32 && w.in * size_of(w.dtype) % 16 == 0 &&
         norm_bytes(x.rows, w) <= kFreeShared;
}

void norm_few_rows_linear(cudaStream_t stream, Tensor x, Tensor gain, Tensor bias, float epsilon, const Matrix& w,
                          Tensor w_bias, Epilogue epilogue, Tensor out) {
  static_assert(kSlices * 32 == kNormThreads);
  const Norm norm{x.f32(0), x.stride, gain.f32(0), bias.f32(0), epsilon};
  for_dtype(out.dtype, [&](auto y) {
    const Target<decltype(y)> target = target_of<decltype(y)>(w_bias, epilogue, out);
    if (w.dtype == DType::kFloat16) return norm_tensor_linear<__half>(stream, x, norm, w, target);
    norm_tensor_linear<__nv_bfloat16>(stream, x, norm, w, target);
  });
}

void finish_linear(cudaStream_t stream, Tensor sums, Tensor bias, Activation activation, Tensor out) {
  for_dtype(out.dtype, [&](auto y) {
    launch(stream, {dim3(static_cast<unsigned>(out.rows)), dim3(256)}, finish_kernel<decltype(y)>, sums.f32(0),
           sums.stride, target_of<decltype(y)>(bias, {activation, false}, out), out.cols);
  });
}

}  // namespace stagecoach::cuda
