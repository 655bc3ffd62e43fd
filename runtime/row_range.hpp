// The precondition that every weight source shares.
#pragma once

#include <fmt/format.h>

#include <cstddef>
#include <span>
#include <stdexcept>

#include "kernels/tensor.hpp"
#include "partition/model.hpp"

namespace stagecoach {

// The first `count` units of `out`, of `unit_bytes` each. Throws std::invalid_argument, a caller's mistake, when they
// are not among the tensor's `total` units (rows, panels) or `out` is too small.
inline std::span<std::byte> range_bytes(const TensorSpec& tensor, const char* units, std::int64_t total,
                                        std::int64_t unit_bytes, std::int64_t first, std::int64_t count,
                                        std::span<std::byte> out) {
  if (first < 0 || count < 0 || first > total || count > total - first) {
    throw std::invalid_argument(
        fmt::format("tensor {}: {} {} from {} on asked for, but it has {}", tensor.name, count, units, first, total));
  }
  const auto bytes = static_cast<std::size_t>(count * unit_bytes);
  if (out.size() < bytes) {
    throw std::invalid_argument(
        fmt::format("tensor {}: {} {} need {} bytes, the buffer has {}", tensor.name, count, units, bytes, out.size()));
  }
  return out.first(bytes);
}

inline std::span<std::byte> row_bytes(const TensorSpec& tensor, DType dtype, std::int64_t first_row, std::int64_t rows,
                                      std::span<std::byte> out) {
  return range_bytes(tensor, "rows", tensor.rows, tensor.cols * size_of(dtype), first_row, rows, out);
}

}  // namespace stagecoach
