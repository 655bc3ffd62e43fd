// What the attention kernels share: their arguments, elements of the three dtypes, and the merging of states.
//
// The state of a reduction over keys is (m, l, o): m the largest score, l = sum of 2^(s - m), o = sum of 2^(s - m) v,
// with scores in powers of two: s = scale * log2(e) * q k. States of disjoint keys merge to
//   m' = max(m, n);  keep = 2^(m - m');  take = 2^(n - m');  l' = l keep + l_n take;  o' = o keep + o_n take,
// and out = o / l. The empty state is (-inf, 0, 0); merging it changes no bit, as long as the products that a masked
// key contributes are 0 * finite: columns of V that later rows of a sequence leave infinite reach the earlier rows of
// the same tile.
//
// Where segments are reduced one by one (in parts, or because a plan is deterministic), their states are merged as
// parts (backend.hpp) hold them, with natural scores: the same operations wherever that is done.
//
// The order of roundings is part of the layout-invariance contract, so kernels write fmaf where they mean it and
// rounded_product where a product must not be fused with an addition that follows.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numbers>
#include <type_traits>

#include "kernels/cuda/attention_plan.hpp"
#include "kernels/cuda/device_rows.hpp"
#include "kernels/cuda/kv_layout.hpp"
#include "kernels/tensor.hpp"

namespace stagecoach::cuda {

inline constexpr int kAttentionThreads = 128;
inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffU;

struct AttentionCall {
  DeviceRows rows;
  const AttentionItem* items = nullptr;
  const AttentionCombine* combines = nullptr;
  const void* qkv = nullptr;  // (rows, 3 * n_head * head_dim) of `dtype`
  void* out = nullptr;        // (rows, n_head * head_dim) of `out_dtype`, or parts (results, part_width)
  std::int64_t qkv_stride = 0;
  std::int64_t out_stride = 0;
  DType dtype = DType::kFloat32;
  DType out_dtype = DType::kFloat32;
  bool in_parts = false;     // `out` takes states instead of their quotients
  bool qkv_vectors = false;  // every head of qkv begins at a multiple of 16 bytes and has whole vectors of columns
  bool out_pairs = false;    // even columns of out are aligned to two elements
  std::byte* pages = nullptr;
  std::int32_t restart_pages = 0;  // AttentionPlan::restart_pages
  bool merges_segments = false;    // AttentionPlan::merges_segments
  bool appends = false;            // attend_rows appends the rows' own K and V
  KvLayout layout;
  float scale = 1.0F;        // times log2(e), positive
  float query_sign = 1.0F;   // the scale's own sign
  float* values = nullptr;   // (partials, n_head, padded_dim): o
  float* summary = nullptr;  // (partials, n_head, 2): m and l

  __device__ std::int64_t result_begin(const AttentionItem& item, int row) const {
    return (item.result + std::int64_t{row} * item.result_stride) * out_stride;
  }
  __device__ float* partial_values(std::int64_t partial, int head) const {
    return values + (partial * layout.n_head + head) * layout.padded_dim;
  }
  __device__ float* partial_summary(std::int64_t partial, int head) const {
    return summary + (partial * layout.n_head + head) * 2;
  }
};

struct alignas(16) Vector {
  std::uint32_t words[4];
};

template <typename T>
__device__ inline T from_float(float value) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(value);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(value);
  } else {
    return value;
  }
}
template <typename T>
__device__ inline float to_float(T value) {
  if constexpr (std::is_same_v<T, __half>) {
    return __half2float(value);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __bfloat162float(value);
  } else {
    return value;
  }
}

// Two 16-bit elements side by side, `low` in the low half.
template <typename Half>
__device__ inline std::uint32_t pack(float low, float high) {
  std::uint32_t word;
  if constexpr (std::is_same_v<Half, __half>) {
    const __half2 both = __floats2half2_rn(low, high);
    std::memcpy(&word, &both, sizeof(word));
  } else {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    std::memcpy(&word, &both, sizeof(word));
  }
  return word;
}

// Element `i` of a vector of T.
template <typename T>
__device__ inline float element(const Vector& vector, int i) {
  if constexpr (std::is_same_v<T, float>) {
    return std::bit_cast<float>(vector.words[i]);
  } else {
    const std::uint32_t word = vector.words[i / 2];
    if constexpr (std::is_same_v<T, __nv_bfloat16>) {
      return std::bit_cast<float>(i % 2 == 0 ? word << 16 : word & 0xffff0000U);
    } else {
      return __half2float(__ushort_as_half(static_cast<unsigned short>(i % 2 == 0 ? word & 0xffffU : word >> 16)));
    }
  }
}

// Activations: their dtype is a run-time value, since they are read and written once per block.
__device__ inline float load_activation(const void* data, DType dtype, std::int64_t index) {
  if (dtype == DType::kFloat32) return static_cast<const float*>(data)[index];
  if (dtype == DType::kFloat16) return to_float(static_cast<const __half*>(data)[index]);
  return to_float(static_cast<const __nv_bfloat16*>(data)[index]);
}
// Eight elements from `index`, of which `real` (perhaps none, or less) exist; zeros for the others.
__device__ inline void load_activations(const void* data, DType dtype, bool vectors, std::int64_t index, int real,
                                        float (&result)[8]) {
  if (!vectors || real < 8) {
#pragma unroll
    for (int i = 0; i < 8; ++i) result[i] = i < real ? load_activation(data, dtype, index + i) : 0.0F;
  } else if (dtype == DType::kFloat32) {
    const auto* source = reinterpret_cast<const Vector*>(static_cast<const float*>(data) + index);
    const Vector low = source[0];
    const Vector high = source[1];
#pragma unroll
    for (int i = 0; i < 8; ++i) result[i] = element<float>(i < 4 ? low : high, i % 4);
  } else {
    const Vector vector = *reinterpret_cast<const Vector*>(static_cast<const __half*>(data) + index);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      result[i] = dtype == DType::kFloat16 ? element<__half>(vector, i) : element<__nv_bfloat16>(vector, i);
    }
  }
}
__device__ inline void store_activation(void* data, DType dtype, std::int64_t index, float value) {
  if (dtype == DType::kFloat32) {
    static_cast<float*>(data)[index] = value;
  } else if (dtype == DType::kFloat16) {
    static_cast<__half*>(data)[index] = from_float<__half>(value);
  } else {
    static_cast<__nv_bfloat16*>(data)[index] = from_float<__nv_bfloat16>(value);
  }
}

// Elements `index` and `index` + 1, aligned to both.
__device__ inline void store_activations(void* data, DType dtype, std::int64_t index, float low, float high) {
  if (dtype == DType::kFloat32) {
    *reinterpret_cast<float2*>(static_cast<float*>(data) + index) = make_float2(low, high);
  } else {
    *reinterpret_cast<std::uint32_t*>(static_cast<std::uint16_t*>(data) + index) =
        dtype == DType::kFloat16 ? pack<__half>(low, high) : pack<__nv_bfloat16>(low, high);
  }
}

inline constexpr int kVectorColumns = 8;  // of a key or value that one thread appends

// Columns from `column` on of a row's K (which = 0) or V to position `position` of page `page`.
template <typename T>
__device__ inline void append_vector(const AttentionCall& call, std::int64_t row, std::int32_t position,
                                     std::int32_t page, int which, int head, int column) {
  const KvLayout& layout = call.layout;
  const std::int64_t width = std::int64_t{layout.n_head} * layout.head_dim;
  const std::int64_t source = row * call.qkv_stride + (1 + which) * width + head * layout.head_dim + column;
  struct alignas(16) Elements {
    T values[kVectorColumns];
  };
  float values[kVectorColumns];
  load_activations(call.qkv, call.dtype, call.qkv_vectors, source, layout.head_dim - column, values);
  Elements elements;
#pragma unroll
  for (int i = 0; i < kVectorColumns; ++i) elements.values[i] = from_float<T>(values[i]);
  std::byte* tile = call.pages + layout.tile(page, which, head);
  const std::int64_t target = std::int64_t{position % kPagePositions} * layout.padded_dim + column;
  *reinterpret_cast<Elements*>(tile + target * static_cast<std::int64_t>(sizeof(T))) = elements;
}

__device__ inline float rounded_product(float a, float b) {
  return __fmul_rn(a, b);
}

// `largest` as something that can be subtracted: of no keys, the scores' differences to it must not be NaN.
__device__ inline float reference_score(float largest) {
  return largest == -INFINITY ? 0.0F : largest;
}

struct MergeFactors {
  float largest, keep, take;
};
__device__ inline MergeFactors merge_factors(float largest, float next) {
  const float both = fmaxf(largest, next);
  const float reference = reference_score(both);
  return {both, exp2f(largest - reference), exp2f(next - reference)};
}
// Of states whose scores are natural ones.
__device__ inline MergeFactors merge_segment_factors(float largest, float next) {
  constexpr float kLog2E = std::numbers::log2e_v<float>;
  const float both = fmaxf(largest, next);
  const float reference = reference_score(both);
  return {both, exp2f((largest - reference) * kLog2E), exp2f((next - reference) * kLog2E)};
}
__device__ inline float natural_score(float score) {
  return rounded_product(score, std::numbers::ln2_v<float>);
}
// l or o of the two states.
__device__ inline float merged(const MergeFactors& factors, float value, float next) {
  return fmaf(value, factors.keep, rounded_product(next, factors.take));
}

// o / l; never -0, which masked keys may turn into 0.
__device__ inline float normalized(float value, float inverse_sum) {
  return fmaf(value, inverse_sum, 0.0F);
}
// What a result's values are multiplied with.
__device__ inline float result_factor(const AttentionCall& call, float sum) {
  return call.in_parts ? 1.0F : 1.0F / sum;
}
// m, a natural score, and l of a part that begins at element `begin` of `out`.
__device__ inline void store_part_summary(const AttentionCall& call, std::int64_t begin, int head, float largest,
                                          float sum) {
  const KvLayout& layout = call.layout;
  float* summary = static_cast<float*>(call.out) + begin + std::int64_t{layout.n_head} * layout.head_dim + 2 * head;
  summary[0] = largest;
  summary[1] = sum;
}

// Whether the item's keys, before page `end`, are of several segments that must be reduced one by one.
__device__ inline bool spans_segments(const AttentionCall& call, const AttentionItem& item, int end) {
  return call.restart_pages > 0 && (end - 1) / kSegmentPages > item.first_page / kSegmentPages;
}

// The launchers of the two families; `count` items per head.
void attend_tiles(cudaStream_t stream, const AttentionCall& call, DType kv_dtype, std::int32_t count);
void attend_rows(cudaStream_t stream, const AttentionCall& call, DType kv_dtype, std::int32_t count, bool tiles);
// Whether attend_tiles has a kernel for these pages.
bool tiles_possible(const KvLayout& layout, DType kv_dtype);

}  // namespace stagecoach::cuda
