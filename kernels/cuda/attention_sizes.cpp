// Sizes and preconditions of attention: the part that needs no device compiler.
#include <fmt/format.h>

#include <cmath>
#include <stdexcept>

#include "kernels/cuda/attention.hpp"
#include "kernels/cuda/kv_layout.hpp"

namespace stagecoach::cuda {
namespace {

void check_head(std::int32_t n_head, std::int32_t head_dim, DType dtype) {
  if (n_head < 1 || n_head > 65535 || head_dim < 1 || head_dim > kMaxHeadDim || dtype == DType::kInt8) {
    throw std::invalid_argument(
        fmt::format("CUDA attention: {} heads of {} columns in {}; it knows heads of up to {} columns in float32, "
                    "float16 and bfloat16",
                    n_head, head_dim, name_of(dtype), kMaxHeadDim));
  }
}

}  // namespace

std::int64_t kv_page_bytes(std::int32_t n_head, std::int32_t head_dim, DType dtype) {
  check_head(n_head, head_dim, dtype);
  return kv_layout(n_head, head_dim, dtype).page_bytes();
}

std::int64_t attention_scratch_bytes(std::int64_t max_rows, std::int32_t n_head, std::int32_t head_dim) {
  check_head(n_head, head_dim, DType::kFloat32);
  const std::int64_t floats = n_head * (std::int64_t{padded_dim(head_dim)} + 2);
  return AttentionPlan::partials_limit(max_rows) * floats * static_cast<std::int64_t>(sizeof(float));
}

void check_attention(const DeviceRows& rows, const AttentionPlan& plan, Tensor qkv, const KvPages& kv,
                     const AttentionOptions& options, Tensor out) {
  check_head(kv.n_head, kv.head_dim, kv.dtype);
  const std::int64_t width = std::int64_t{kv.n_head} * kv.head_dim;
  if (qkv.rows != rows.rows || out.rows != rows.rows || qkv.cols != 3 * width || out.cols != width ||
      qkv.stride < qkv.cols || out.stride < out.cols || qkv.dtype != out.dtype || qkv.dtype == DType::kInt8) {
    throw std::invalid_argument(fmt::format(
        "CUDA attention: {} rows, {} heads of {}, qkv ({}, {}) {} and out ({}, {}) {} do not fit", rows.rows, kv.n_head,
        kv.head_dim, qkv.rows, qkv.cols, name_of(qkv.dtype), out.rows, out.cols, name_of(out.dtype)));
  }
  if (plan.rows() > rows.rows) {
    throw std::invalid_argument(fmt::format("CUDA attention: a plan of {} rows for {} rows", plan.rows(), rows.rows));
  }
  if (!std::isfinite(options.scale)) {
    throw std::invalid_argument(fmt::format("CUDA attention: a scale of {}", options.scale));
  }
}

}  // namespace stagecoach::cuda
