// Preconditions of attention: the part that needs no device compiler.
#include <fmt/format.h>

#include <cmath>
#include <stdexcept>

#include "kernels/cuda/attention.hpp"

namespace stagecoach::cuda {
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
