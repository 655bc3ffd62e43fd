// The reference backend's matrices: row-major (in, out); int8 ones are followed by their scales, (groups, out) float32.
#pragma once

#include "kernels/backend.hpp"
#include "kernels/convert.hpp"

namespace stagecoach {

struct ReferenceMatrix {
  static std::int64_t scales_begin(std::int64_t in, std::int64_t out) { return (in * out + 3) / 4 * 4; }
  static std::int64_t bytes(std::int64_t in, std::int64_t out, DType dtype) {
    if (dtype != DType::kInt8) return in * out * size_of(dtype);
    return scales_begin(in, out) + int8_groups(in) * out * size_of(DType::kFloat32);
  }

  static float* scales(const Matrix& m) {
    return reinterpret_cast<float*>(static_cast<std::byte*>(m.storage.data()) + scales_begin(m.in, m.out));
  }
  static float element(const Matrix& m, std::int64_t k, std::int64_t n) {
    const std::int64_t index = k * m.out + n;
    if (m.dtype != DType::kInt8) return load_element(m.storage.data(), m.dtype, index);
    const float q = static_cast<const std::int8_t*>(m.storage.data())[index];
    return q * scales(m)[k / kInt8Group * m.out + n];
  }
};

}  // namespace stagecoach
