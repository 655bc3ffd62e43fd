// One pass over rows, elements side by side on neighbouring threads.
//
//   embed       out(r, c) = wte(tokens[r], c) + wpe(positions[r], c); nothing for a negative position
//   layer_norm  out(r, c) = (x - mean) / sqrt(variance + epsilon) * gain(c) + bias(c); a block per row, two passes,
//   sums
//               in an order that depends on the columns alone
//   lay_out     matrix(n, k) = source(n, k) or source(k, n), in tiles through shared memory
#include "kernels/cuda/device_matrix.hpp"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/machine.cuh"
#include "kernels/cuda/norm_parts.cuh"
#include "kernels/cuda/rows.hpp"

namespace stagecoach::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 32;
constexpr int kTileRows = 8;  // of threads

unsigned blocks_of(std::int64_t count, std::int64_t per_block) {
  return static_cast<unsigned>((count + per_block - 1) / per_block);
}

template <typename W, typename P>
__global__ void embed_kernel(const std::int32_t* tokens, const std::int32_t* positions, const W* wte,
                             std::int64_t wte_stride, const P* wpe, std::int64_t wpe_stride, float* out,
                             std::int64_t out_stride, std::int64_t cols) {
  const std::int64_t r = blockIdx.x;
  if (positions[r] < 0) return;
  const W* token = wte + tokens[r] * wte_stride;
  const P* position = wpe + positions[r] * wpe_stride;
  for (std::int64_t c = threadIdx.x; c < cols; c += blockDim.x) {
    out[r * out_stride + c] = widen(token[c]) + widen(position[c]);
  }
}

template <typename T>
__global__ void layer_norm_kernel(const float* x, std::int64_t x_stride, const float* gain, const float* bias,
                                  float epsilon, T* out, std::int64_t out_stride, std::int64_t cols) {
  auto* partial = reinterpret_cast<float*>(shared_memory());
  const float* row = x + blockIdx.x * x_stride;
  T* result = out + blockIdx.x * out_stride;
  const RowStatistics statistics = statistics_of(row, cols, epsilon, partial);
  for (std::int64_t c = threadIdx.x; c < cols; c += kNormThreads) {  // in place: each thread its own elements
    result[c] = narrow<T>(normalised(statistics, row[c], gain[c], bias[c]));
  }
}

__global__ void gather_kernel(const float* x, std::int64_t x_stride, const std::int32_t* rows, float* out,
                              std::int64_t out_stride, std::int64_t cols) {
  const float* source = x + rows[blockIdx.x] * x_stride;
  for (std::int64_t c = threadIdx.x; c < cols; c += blockDim.x) out[blockIdx.x * out_stride + c] = source[c];
}

// source (rows, cols) to target(c * stride + r), or without `transposed` to target(r * stride + c).
template <typename S, typename T>
__global__ void lay_out_kernel(const S* source, std::int64_t rows, std::int64_t cols, std::int64_t source_stride,
                               bool transposed, T* target, std::int64_t stride) {
  auto* tile = reinterpret_cast<float*>(shared_memory());  // (kTile, kTile + 1)
  const std::int64_t first_r = static_cast<std::int64_t>(blockIdx.y) * kTile;
  const std::int64_t first_c = static_cast<std::int64_t>(blockIdx.x) * kTile;
  for (int i = static_cast<int>(threadIdx.y); i < kTile; i += kTileRows) {
    const std::int64_t r = first_r + i;
    const std::int64_t c = first_c + threadIdx.x;
    if (r >= rows || c >= cols) continue;
    const float value = widen(source[r * source_stride + c]);
    if (transposed) {
      tile[i * (kTile + 1) + static_cast<int>(threadIdx.x)] = value;
    } else {
      target[r * stride + c] = narrow<T>(value);
    }
  }
  if (!transposed) return;
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.y); i < kTile; i += kTileRows) {
    const std::int64_t c = first_c + i;
    const std::int64_t r = first_r + threadIdx.x;
    if (r < rows && c < cols) {
      target[c * stride + r] = narrow<T>(tile[static_cast<int>(threadIdx.x) * (kTile + 1) + i]);
    }
  }
}

}  // namespace

void embed(cudaStream_t stream, const std::int32_t* tokens, const std::int32_t* positions, const Matrix& wte,
           Tensor wpe, Tensor out) {
  const Tensor table = as_tensor(wte);
  for_dtype(wte.dtype, [&](auto w) {
    for_dtype(wpe.dtype, [&](auto p) {
      launch(stream, {dim3(static_cast<unsigned>(out.rows)), dim3(kThreads)}, embed_kernel<decltype(w), decltype(p)>,
             tokens, positions, static_cast<const decltype(w)*>(table.data), table.stride,
             static_cast<const decltype(p)*>(wpe.data), wpe.stride, out.f32(0), out.stride, out.cols);
    });
  });
}

void layer_norm(cudaStream_t stream, Tensor x, Tensor gain, Tensor bias, float epsilon, Tensor out) {
  for_dtype(out.dtype, [&](auto t) {
    launch(stream, {dim3(static_cast<unsigned>(x.rows)), dim3(kNormThreads), kNormWarps * sizeof(float)},
           layer_norm_kernel<decltype(t)>, x.f32(0), x.stride, gain.f32(0), bias.f32(0), epsilon,
           static_cast<decltype(t)*>(out.data), out.stride, x.cols);
  });
}

void gather(cudaStream_t stream, Tensor x, const std::int32_t* rows, Tensor out) {
  launch(stream, {dim3(static_cast<unsigned>(out.rows)), dim3(kThreads)}, gather_kernel, x.f32(0), x.stride, rows,
         out.f32(0), out.stride, x.cols);
}

void lay_out(cudaStream_t stream, Tensor source, bool transposed, Tensor target) {
  // Tiles go down the grid's second dimension, which has room for 65,535 of them: two million rows at once.
  const Grid grid{dim3(blocks_of(source.cols, kTile), blocks_of(source.rows, kTile)), dim3(kTile, kTileRows),
                  kTile * (kTile + 1) * sizeof(float)};
  for_dtype(source.dtype, [&](auto s) {
    for_dtype(target.dtype, [&](auto t) {
      launch(stream, grid, lay_out_kernel<decltype(s), decltype(t)>, static_cast<const decltype(s)*>(source.data),
             source.rows, source.cols, source.stride, transposed, static_cast<decltype(t)*>(target.data),
             target.stride);
    });
  });
}

}  // namespace stagecoach::cuda
