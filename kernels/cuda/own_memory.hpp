// What the CUDA backend allocates for itself out of its pool: one place for its sizes, without CUDA.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/attention_plan.hpp"
#include "kernels/cuda/pool.hpp"
#include "kernels/memory_layout.hpp"

namespace stagecoach::cuda {

// Half is for cuBLASLt itself, as much as its documentation advises for recent devices.
inline constexpr std::int64_t kWorkspaceBytes = 64 << 20;
inline constexpr std::int64_t kPieceBytes = 4 << 20;  // of weights on their way to the device
// Of what is uploaded with each step, so that it seldom moves: recorded steps hold its address.
inline constexpr std::int64_t kLeastStepBytes = 64 << 10;
inline constexpr std::int64_t kRowQueryBytes = 32;  // of a RowQuery (logits.hpp)

constexpr std::int64_t workspace_bytes(std::int64_t pool_bytes) {
  return std::min(kWorkspaceBytes, pool_bytes / 8 / 512 * 512);
}
// Of the bits of one row's penalised tokens.
constexpr std::int64_t query_words(std::int64_t vocab) {
  return (vocab + 31) / 32;
}

// Of merge_parts: ends of the rows' parts, and their numbers.
constexpr std::int64_t merge_words(std::int64_t rows, std::int64_t numbers) {
  return rows + 1 + numbers;
}

struct OwnMemory {
  std::int64_t workspace = 0;  // of products
  std::int64_t piece = 0;
  std::int64_t row_words = 0;  // of set_rows
  std::int64_t plan_words = 0;
  std::int64_t gather_words = 0;
  std::int64_t query_bytes = 0;
  std::int64_t attention = 0;  // partial results
  std::int64_t part_plan_words = 0;
  std::int64_t merge_words = 0;  // of merge_parts

  std::int64_t total() const;  // of the pool
};
OwnMemory own_memory(std::int64_t pool_bytes, const OperationLimits& limits);

// Throws std::invalid_argument for what the attention kernels do not know.
void check_head(std::int32_t n_head, std::int32_t head_dim, DType dtype);

// Throws std::invalid_argument for a head_dim beyond kMaxHeadDim.
std::int64_t kv_page_bytes(std::int32_t n_head, std::int32_t head_dim, DType dtype);
// Room for the partial results of plans of up to `max_rows` rows.
std::int64_t attention_scratch_bytes(std::int64_t max_rows, std::int32_t n_head, std::int32_t head_dim);

}  // namespace stagecoach::cuda
