// Preconditions of attention: the part that needs no device compiler.
#include <fmt/format.h>

#include <cmath>
#include <stdexcept>

#include "kernels/cuda/attention.hpp"

namespace stagecoach::cuda {
namespace {

void check_plan(const DeviceRows& rows, const AttentionPlan& plan, const AttentionOptions& options, bool in_parts) {
  if (plan.rows() > rows.rows) {
    throw std::invalid_argument(fmt::format("CUDA attention: a plan of {} rows for {} rows", plan.rows(), rows.rows));
  }
  if (plan.in_parts() != in_parts) {
    throw std::invalid_argument(fmt::format("CUDA attention: a plan {} parts for attention {} parts",
                                            plan.in_parts() ? "in" : "without", in_parts ? "in" : "without"));
  }
  if (!std::isfinite(options.scale)) {
    throw std::invalid_argument(fmt::format("CUDA attention: a scale of {}", options.scale));
  }
}

}  // namespace

void check_append(const DeviceRows& rows, Tensor qkv, const KvPages& kv) {
  check_head(kv.n_head, kv.head_dim, kv.dtype);
  const std::int64_t width = std::int64_t{kv.n_head} * kv.head_dim;
  if (qkv.rows != rows.rows || qkv.cols != 3 * width || qkv.stride < qkv.cols || qkv.dtype == DType::kInt8) {
    throw std::invalid_argument(fmt::format("CUDA attention: {} rows, {} heads of {} and qkv ({}, {}) {} do not fit",
                                            rows.rows, kv.n_head, kv.head_dim, qkv.rows, qkv.cols, name_of(qkv.dtype)));
  }
}

void check_attention(const DeviceRows& rows, const AttentionPlan& plan, Tensor qkv, const KvPages& kv,
                     const AttentionOptions& options, Tensor out) {
  check_append(rows, qkv, kv);
  const std::int64_t width = std::int64_t{kv.n_head} * kv.head_dim;
  if (out.rows != rows.rows || out.cols != width || out.stride < out.cols || qkv.dtype != out.dtype) {
    throw std::invalid_argument(
        fmt::format("CUDA attention: {} rows, {} heads of {}, qkv in {} and out ({}, {}) {} do not fit", rows.rows,
                    kv.n_head, kv.head_dim, name_of(qkv.dtype), out.rows, out.cols, name_of(out.dtype)));
  }
  check_plan(rows, plan, options, false);
}

void check_attention_parts(const DeviceRows& rows, const AttentionPlan& plan, Tensor qkv, const KvPages& kv,
                           const AttentionOptions& options, Tensor parts) {
  check_append(rows, qkv, kv);
  const std::int64_t width = part_width(kv.n_head, kv.head_dim);
  if (parts.rows != plan.results() || parts.cols != width || parts.stride < width || parts.dtype != DType::kFloat32) {
    throw std::invalid_argument(fmt::format("CUDA attention: {} parts of {} heads of {} and parts ({}, {}) {}",
                                            plan.results(), kv.n_head, kv.head_dim, parts.rows, parts.cols,
                                            name_of(parts.dtype)));
  }
  check_plan(rows, plan, options, true);
}

}  // namespace stagecoach::cuda
