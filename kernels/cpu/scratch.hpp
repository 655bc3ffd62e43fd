// What the CPU backend allocates for itself: one place for its sizes.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/kernels.hpp"

namespace stagecoach::cpu {

// Of each thread.
inline constexpr std::int64_t kLinearScratchBytes =
    (kTaskPanels * kLargeRowBlock * kPanel + kWideK * kWideColumns) * size_of(DType::kFloat32);
// Largest head_dim that the threads' scratch has room for from the start; beyond it grows.
inline constexpr std::int64_t kUsualHeadDim = 256;
constexpr std::int64_t attention_scratch_bytes(std::int64_t head_dim) {
  return attention_scratch_floats(std::max(head_dim, kUsualHeadDim)) * size_of(DType::kFloat32);
}

constexpr std::int64_t pairs_of(std::int64_t columns) {
  return (columns + 1) / 2;
}

// Elements of 32 bits that a product of `rows` rows of `columns` columns needs; more rows or columns never need less.
struct ProductScratch {
  std::int64_t packed = 0;     // rows as the tasks read them; a single row is read where it lies
  std::int64_t quantized = 0;  // rows rounded to 16 bits, and their scales
};
constexpr ProductScratch product_scratch(std::int64_t rows, std::int64_t columns, DType weights) {
  if (weights != DType::kInt8) return {rows > 1 ? rows * columns : 0, 0};
  return {rows > 1 ? rows * pairs_of(columns) : 0, rows * (pairs_of(columns) + int8_groups(columns))};
}

}  // namespace stagecoach::cpu
