// Element conversions between float32, float16 (IEEE binary16) and bfloat16, round to nearest even, on the host.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "kernels/tensor.hpp"

namespace stagecoach {

inline float bf16_to_f32(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}
inline std::uint16_t f32_to_bf16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return static_cast<std::uint16_t>((bits >> 16) | 0x40U);  // stays a NaN
  return static_cast<std::uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}
float f16_to_f32(std::uint16_t bits);
std::uint16_t f32_to_f16(float value);

// Element `index` of an array of `dtype` as float32.
inline float load_element(const void* data, DType dtype, std::int64_t index) {
  if (dtype == DType::kFloat32) return static_cast<const float*>(data)[index];
  const std::uint16_t bits = static_cast<const std::uint16_t*>(data)[index];
  return dtype == DType::kFloat16 ? f16_to_f32(bits) : bf16_to_f32(bits);
}
inline void store_element(void* data, DType dtype, std::int64_t index, float value) {
  if (dtype == DType::kFloat32) {
    static_cast<float*>(data)[index] = value;
  } else {
    static_cast<std::uint16_t*>(data)[index] = dtype == DType::kFloat16 ? f32_to_f16(value) : f32_to_bf16(value);
  }
}

// `count` elements of `source` as `to`, rounded to nearest even; a copy when the dtypes are equal. `result` is apart.
void convert_elements(const void* source, DType from, void* result, DType to, std::int64_t count);
// Position of the first element of `dtype` that is infinite or not a number as a `to`, also because it is too large for
// `to`; -1 when there is none.
std::int64_t first_not_finite(const void* data, DType dtype, DType to, std::int64_t count);
inline std::int64_t first_not_finite(const void* data, DType dtype, std::int64_t count) {
  return first_not_finite(data, dtype, dtype, count);
}

}  // namespace stagecoach
