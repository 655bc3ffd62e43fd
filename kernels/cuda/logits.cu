// largest = max x(t), sum = sum over t of exp(x(t) - largest), and the `top` largest of the penalised logits y(t); a
// block per row.
//
// A logit and its token make one key, larger for a larger logit and then for a lower token, so that all keys of a row
// differ and the top ones are one set in one order, whichever thread finds them first. One pass over the row gives the
// totals and each thread's largest key; for more than one top logit a second pass collects the keys that are no less
// than the top-th largest of those: for logits in no particular order hardly more than wanted. Where they outgrow the
// room in shared memory, they are sorted, and all but the top ones dropped. Keys are sorted by Batcher's bitonic
// network.
#include <cmath>
#include <cstdint>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/logits.hpp"
#include "kernels/cuda/machine.cuh"

namespace stagecoach::cuda {
namespace {

constexpr int kManyThreads = 1024;
constexpr int kFewThreads = 128;
constexpr std::int64_t kManyCols = 4096;
constexpr int kAhead = 8;  // logits that a thread loads before it uses them

using Key = unsigned long long;  // 0 is none

int room_for(int threads) {
  return threads < kMostTopLogits ? 2 * kMostTopLogits : 2 * threads;  // a power of 2, of keys
}

// What threads of a block share; `keys` have room_for(threads).
struct Shared {
  Key* keys;
  Key* partial_keys;      // (32), by warp
  float* partial_values;  // (32), by warp
  unsigned* count;

  __device__ Shared() {
    partial_keys = reinterpret_cast<Key*>(shared_memory());
    partial_values = reinterpret_cast<float*>(partial_keys + 32);
    count = reinterpret_cast<unsigned*>(partial_values + 32);
    keys = partial_keys + 32 + 16 + 1;
  }
  static std::size_t bytes(int threads) {
    return (32 + 16 + 1 + static_cast<std::size_t>(room_for(threads))) * sizeof(Key);
  }
};

struct Row {
  const float* x;
  std::int64_t cols;
  const std::uint32_t* bits;  // null without a penalty
  double penalty;

  __device__ float penalised(std::int64_t token, float logit) const {
    if (bits == nullptr || (bits[token / 32] >> (token % 32) & 1U) == 0) return logit;
    const double x64 = logit;
    return static_cast<float>(logit < 0.0F ? x64 * penalty : x64 / penalty);
  }
  __device__ Key key(std::int64_t token, float logit) const {
    const unsigned bits32 = __float_as_uint(penalised(token, logit) + 0.0F);  // -0 becomes 0
    const unsigned ordered = bits32 >> 31 != 0 ? ~bits32 : bits32 | 0x80000000U;
    return (Key{ordered} << 32) | (0xffffffffU - static_cast<unsigned>(token));
  }
};

__device__ std::int32_t token_of(Key key) {
  return static_cast<std::int32_t>(0xffffffffU - static_cast<unsigned>(key));
}

struct Larger {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};
struct Sum {
  __device__ float operator()(float a, float b) const { return a + b; }
};

// Of the values of all threads, in every thread. `partial` has room for a value of each warp.
template <typename T, typename Combine>
__device__ T combined(T value, T* partial, Combine combine) {
  for (int distance = 16; distance > 0; distance /= 2) {
    value = combine(value, __shfl_xor_sync(0xffffffffU, value, distance));
  }
  __syncthreads();  // the values before have been read
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  value = partial[0];
  for (unsigned w = 1; w < blockDim.x / 32; ++w) value = combine(value, partial[w]);
  return value;
}

// Of a thread's share of the row.
struct Share {
  float largest = -INFINITY;
  float sum = 0.0F;  // of exp(x - largest)
  bool has_nan = false;
  Key best = 0;
};

__device__ Share first_pass(const Row& row) {
  Share share;
  const std::int64_t step = blockDim.x;
  for (std::int64_t first = threadIdx.x; first < row.cols; first += kAhead * step) {
    float x[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) x[i] = first + i * step < row.cols ? row.x[first + i * step] : -INFINITY;
    float largest = share.largest;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      share.has_nan |= x[i] != x[i];
      largest = fmaxf(largest, x[i]);
      const std::int64_t token = first + i * step;
      if (token < row.cols) share.best = Larger()(share.best, row.key(token, x[i]));
    }
    if (largest == -INFINITY) continue;
    share.sum *= expf(share.largest - largest);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) share.sum += expf(x[i] - largest);
    share.largest = largest;
  }
  return share;
}

// Largest first; `size` is a power of 2.
__device__ void sort(Key* keys, int size) {
  for (int width = 2; width <= size; width *= 2) {
    for (int distance = width / 2; distance > 0; distance /= 2) {
      __syncthreads();
      for (int i = static_cast<int>(threadIdx.x); i < size / 2; i += static_cast<int>(blockDim.x)) {
        const int a = 2 * i - (i & (distance - 1));
        const int b = a + distance;
        const bool falling = (a & width) == 0;
        const Key low = keys[a] < keys[b] ? keys[a] : keys[b];
        const Key high = keys[a] < keys[b] ? keys[b] : keys[a];
        keys[a] = falling ? high : low;
        keys[b] = falling ? low : high;
      }
    }
  }
  __syncthreads();
}

// The `top` largest keys of the row to shared.keys, in order. `best` is the thread's largest.
__device__ void collect(const Row& row, int top, Key best, int room, const Shared& shared) {
  const int threads = static_cast<int>(blockDim.x);
  const std::int64_t step = blockDim.x;
  shared.keys[threadIdx.x] = best;
  sort(shared.keys, threads);
  Key least = top <= threads && shared.keys[top - 1] > 0 ? shared.keys[top - 1] : 1;
  if (threadIdx.x == 0) *shared.count = 0;
  __syncthreads();
  for (std::int64_t first = threadIdx.x; first - threadIdx.x < row.cols; first += kAhead * step) {
    Key waiting[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const std::int64_t token = first + i * step;
      waiting[i] = token < row.cols ? row.key(token, row.x[token]) : 0;
    }
    for (bool full = true; full;) {
      full = false;
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (waiting[i] < least) continue;
        const unsigned place = atomicAdd(shared.count, 1U);
        if (place < static_cast<unsigned>(room)) {
          shared.keys[place] = waiting[i];
          waiting[i] = 0;
        } else {
          full = true;
        }
      }
      full = __syncthreads_or(full ? 1 : 0) != 0;
      if (!full) break;
      sort(shared.keys, room);
      least = shared.keys[top - 1];
      if (threadIdx.x == 0) *shared.count = static_cast<unsigned>(top);
      __syncthreads();
    }
  }
  const int count = static_cast<int>(*shared.count);
  int size = 2;
  while (size < count) size *= 2;
  for (int i = count + static_cast<int>(threadIdx.x); i < size; i += threads) shared.keys[i] = 0;
  sort(shared.keys, size);
}

__global__ void __launch_bounds__(kManyThreads)
    summarize_kernel(const float* logits, std::int64_t stride, std::int64_t cols, const RowQuery* queries,
                     const std::uint32_t* bits, int room, std::byte* out) {
  const Shared shared;
  const RowQuery query = queries[blockIdx.x];
  const Row row{logits + blockIdx.x * stride, cols, query.bits < 0 ? nullptr : bits + query.bits, query.penalty};
  const Share share = first_pass(row);
  const int has_nan = __syncthreads_or(share.has_nan ? 1 : 0);
  const float largest = combined(share.largest, shared.partial_values, Larger());
  const float scaled = share.largest == -INFINITY ? 0.0F : share.sum * expf(share.largest - largest);
  const float sum = combined(scaled, shared.partial_values, Sum());
  if (threadIdx.x == 0) {
    *reinterpret_cast<LogitsTotals*>(out + query.summary) = {largest, sum, row.x[query.wanted], has_nan};
  }
  if (query.top == 0 || has_nan != 0) return;  // all threads
  if (query.top == 1) {
    const Key best = combined(share.best, shared.partial_keys, Larger());
    if (threadIdx.x == 0) shared.keys[0] = best;
    __syncthreads();
  } else {
    collect(row, query.top, share.best, room, shared);
  }
  auto* top = reinterpret_cast<TopLogit*>(out + query.summary + sizeof(LogitsTotals));
  for (int i = static_cast<int>(threadIdx.x); i < query.top; i += static_cast<int>(blockDim.x)) {
    const std::int32_t token = token_of(shared.keys[i]);
    top[i] = {token, row.x[token], row.penalised(token, row.x[token])};
  }
}

}  // namespace

void summarize_logits(cudaStream_t stream, Tensor logits, const void* packed, void* out) {
  const int threads = logits.cols < kManyCols ? kFewThreads : kManyThreads;
  const auto* queries = static_cast<const RowQuery*>(packed);
  const Grid grid{dim3(static_cast<unsigned>(logits.rows)), dim3(static_cast<unsigned>(threads)),
                  Shared::bytes(threads)};
  launch(stream, grid, summarize_kernel, logits.f32(0), logits.stride, logits.cols, queries,
         reinterpret_cast<const std::uint32_t*>(queries + logits.rows), room_for(threads),
         static_cast<std::byte*>(out));
}

}  // namespace stagecoach::cuda
