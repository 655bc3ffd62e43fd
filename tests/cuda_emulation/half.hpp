// __half and __nv_bfloat16: storage and conversions (round to nearest even, subnormals kept, every NaN becomes 0x7FFF).
// No arithmetic: kernels compute in float32, and conversions are explicit, so that one that is forgotten is an error.
#pragma once

#include <bit>
#include <cstdint>

namespace stagecoach::cuda_emulation {

inline float half_to_float(std::uint16_t half) {
  const std::uint32_t magnitude = static_cast<std::uint32_t>(half & 0x7FFFu) << 13;
  if (magnitude > 0x0F800000u) return std::bit_cast<float>(0x7FFFFFFFu);
  const float scaled = std::bit_cast<float>(magnitude) * 0x1p112f;  // exact; the exponents' biases are 15 and 127
  const std::uint32_t special = magnitude >= 0x0F800000u ? 0x7F800000u : 0u;  // infinity
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(scaled) | special |
                              (static_cast<std::uint32_t>(half & 0x8000u) << 16));
}

inline std::uint16_t float_to_half(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7FFFFFFFu;
  std::uint32_t half = 0;
  if (magnitude > 0x7F800000u) return 0x7FFF;
  if (magnitude >= 0x477FF000u) {  // 65520, halfway between the largest half and the next power of two
    half = 0x7C00u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 rounds to multiples of 2^-24
    half = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3F000000u;
  } else {
    half = (magnitude + 0xFFFu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
  }
  return static_cast<std::uint16_t>(sign | half);
}

inline float bfloat16_to_float(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

inline std::uint16_t float_to_bfloat16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FFF;
  return static_cast<std::uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace stagecoach::cuda_emulation

struct __half {
  std::uint16_t emulated_bits;
  __half() = default;
  explicit __half(float value) : emulated_bits(stagecoach::cuda_emulation::float_to_half(value)) {}
  explicit operator float() const { return stagecoach::cuda_emulation::half_to_float(emulated_bits); }
};
struct __nv_bfloat16 {
  std::uint16_t emulated_bits;
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float value) : emulated_bits(stagecoach::cuda_emulation::float_to_bfloat16(value)) {}
  explicit operator float() const { return stagecoach::cuda_emulation::bfloat16_to_float(emulated_bits); }
};
struct alignas(4) __half2 {
  __half x, y;
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
