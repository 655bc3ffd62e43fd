// The precondition that every weight source shares.
#pragma once

#include <fmt/format.h>

#include <cstddef>
#include <span>
#include <stdexcept>

#include "kernels/tensor.hpp"
#include "partition/model.hpp"

namespace stagecoach {

// The first rows * cols * size_of(dtype) bytes of `out`. Throws std::invalid_argument, a caller's mistake,
// when the rows are not inside the tensor or `out` is too small.
inline std::span<std::byte> row_bytes(const TensorSpec& tensor, DType dtype, std::int64_t first_row, std::int64_t rows,
                                      std::span<std::byte> out) {
  if (first_row < 0 || rows < 0 || first_row > tensor.rows || rows > tensor.rows - first_row) {
    throw std::invalid_argument(fmt::format("tensor {}: {} rows from row {} on asked for, but it has {}", tensor.name,
                                            rows, first_row, tensor.rows));
  }
  const auto bytes = static_cast<std::size_t>(rows * tensor.cols * size_of(dtype));
  if (out.size() < bytes) {
    throw std::invalid_argument(
        fmt::format("tensor {}: {} rows need {} bytes, the buffer has {}", tensor.name, rows, bytes, out.size()));
  }
  return out.first(bytes);
}

}  // namespace stagecoach
