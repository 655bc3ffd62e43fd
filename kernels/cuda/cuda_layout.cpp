// Sizes on CUDA devices: in every build, so that runs on GPUs can be planned anywhere.
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <stdexcept>

#include "kernels/checks.hpp"
#include "kernels/cuda/device_matrix.hpp"
#include "kernels/cuda/kv_layout.hpp"
#include "kernels/cuda/own_memory.hpp"
#include "kernels/memory_layout.hpp"

namespace stagecoach {
namespace cuda {

void check_head(std::int32_t n_head, std::int32_t head_dim, DType dtype) {
  if (n_head < 1 || n_head > 65535 || head_dim < 1 || head_dim > kMaxHeadDim || dtype == DType::kInt8) {
    throw std::invalid_argument(
        fmt::format("CUDA attention: {} heads of {} columns in {}; it knows heads of up to {} columns in float32, "
                    "float16 and bfloat16",
                    n_head, head_dim, name_of(dtype), kMaxHeadDim));
  }
}

std::int64_t kv_page_bytes(std::int32_t n_head, std::int32_t head_dim, DType dtype) {
  check_head(n_head, head_dim, dtype);
  return kv_layout(n_head, head_dim, dtype).page_bytes();
}

std::int64_t attention_scratch_bytes(std::int64_t max_rows, std::int32_t n_head, std::int32_t head_dim) {
  check_head(n_head, head_dim, DType::kFloat32);
  const std::int64_t floats = n_head * (std::int64_t{padded_dim(head_dim)} + 2);
  return AttentionPlan::partials_limit(max_rows) * floats * static_cast<std::int64_t>(sizeof(float));
}

std::int64_t OwnMemory::total() const {
  std::int64_t bytes = 0;
  for (const std::int64_t part :
       {workspace, piece, row_words, plan_words, gather_words, query_bytes, attention, part_plan_words, merge_words}) {
    if (part > 0) bytes += PoolMap::rounded(part);
  }
  return bytes;
}

// At most, of steps that are padded (row_words.hpp).
std::int64_t padded_rows(std::int64_t rows) {
  constexpr std::int64_t kMost = 256;
  return rows > kMost ? rows : static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(rows)));
}
std::int64_t padded_table_words(std::int64_t tables, std::int64_t words) {
  constexpr std::int64_t kLeastStride = 16;
  return 2 * words + tables * kLeastStride;
}

OwnMemory own_memory(std::int64_t pool_bytes, const OperationLimits& limits) {
  OwnMemory own;
  own.workspace = workspace_bytes(pool_bytes);
  own.piece = kPieceBytes;
  const std::int64_t rows = padded_rows(limits.rows);
  own.row_words = std::max(kLeastStepBytes, 4 * (3 * rows + padded_table_words(rows, limits.table_words)));
  own.plan_words = std::max(kLeastStepBytes, 4 * AttentionPlan::words_limit(rows));
  own.gather_words = 4 * limits.logits_rows;
  own.query_bytes = limits.logits_rows * (kRowQueryBytes + 4 * query_words(limits.vocab));
  own.attention = attention_scratch_bytes(rows, limits.n_head, limits.head_dim);
  if (limits.parts > 0) {
    own.part_plan_words = std::max(kLeastStepBytes, 4 * AttentionPlan::words_limit(limits.rows, limits.parts));
    own.merge_words = 4 * merge_words(limits.rows, limits.parts);
  }
  return own;
}

}  // namespace cuda

namespace {

class CudaLayout final : public MemoryLayout {
 public:
  explicit CudaLayout(std::int64_t pool_bytes) : pool_bytes_(pool_bytes) {}

  DType activation_dtype(DType weights) const override { return weights; }
  std::int64_t matrix_bytes(std::int64_t in, std::int64_t out, DType dtype) const override {
    check_matrix_shape(in, out);
    if (dtype == DType::kInt8) throw std::invalid_argument("int8 matrices are not for CUDA devices");
    return cuda::device_matrix_bytes(in, out, dtype);
  }
  std::int64_t kv_page_bytes(std::int32_t n_head, std::int32_t head_dim, DType dtype) const override {
    return cuda::kv_page_bytes(n_head, head_dim, dtype);
  }
  std::int64_t own_bytes(const OperationLimits& limits) const override {
    return cuda::own_memory(pool_bytes_, limits).total();
  }
  std::int64_t unit_bytes() const override { return cuda::PoolMap::kAlignment; }
  bool in_host_memory() const override { return false; }

 private:
  std::int64_t pool_bytes_;
};

}  // namespace

std::unique_ptr<MemoryLayout> cuda_layout(std::int64_t pool_bytes) {
  return std::make_unique<CudaLayout>(pool_bytes / cuda::PoolMap::kAlignment * cuda::PoolMap::kAlignment);
}

}  // namespace stagecoach
