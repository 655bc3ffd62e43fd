// Attention of a backend against the reference's, whole and in parts; all tensors are host copies in float32. Throw
// std::logic_error.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/backend.hpp"

namespace stagecoach {

// Of all that was ever appended to some pages.
struct KvBounds {
  double key = 0.0;    // over rows and heads, Euclidean norm of k
  double value = 0.0;  // over elements, |v|

  void add(Tensor qkv, const KvPages& kv);
};

// `dtype` is that of the backend's own activations.
void compare_attention(const KvBounds& bounds, const KvPages& kv, Tensor qkv, DType dtype, float scale, Tensor got,
                       Tensor want);
// `rows[p]` is the row of qkv that part p is of.
void compare_parts(const KvBounds& bounds, const KvPages& kv, Tensor qkv, DType dtype, float scale,
                   std::span<const std::int64_t> rows, Tensor got, Tensor want);
// Both are merged from `parts`, as merge_parts says; `dtype` is that of the backend's own output.
void compare_merged(Tensor parts, std::int32_t n_head, std::span<const std::int32_t> first,
                    std::span<const std::int32_t> numbers, DType dtype, Tensor got, Tensor want);

}  // namespace stagecoach
