// How a matrix (in, out) lies on a CUDA device: as (out, in), one output's weights side by side, each row padded with
// zeros to whole loads of 16 bytes. Both cuBLASLt and kernels for few rows read it in long runs.
#pragma once

#include <cstdint>

#include "kernels/backend.hpp"

namespace stagecoach::cuda {

// Elements from one output to the next.
constexpr std::int64_t row_elements(std::int64_t in, DType dtype) {
  const std::int64_t unit = 16 / size_of(dtype);
  return (in + unit - 1) / unit * unit;
}
constexpr std::int64_t device_matrix_bytes(std::int64_t in, std::int64_t out, DType dtype) {
  return out * row_elements(in, dtype) * size_of(dtype);
}
// (out, in) view.
inline Tensor as_tensor(const Matrix& w) {
  return {w.storage.data(), w.dtype, w.out, w.in, row_elements(w.in, w.dtype)};
}

}  // namespace stagecoach::cuda
