#include "kernels/convert.hpp"

#include <algorithm>
#include <limits>

namespace stagecoach {

// IEEE binary16: 1 sign, 5 exponent (bias 15), 10 fraction bits.
float f16_to_f32(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000U) << 16;
  const std::uint32_t exponent = (bits >> 10) & 0x1fU;
  const std::uint32_t fraction = bits & 0x3ffU;
  if (exponent == 0x1fU) return std::bit_cast<float>(sign | 0x7f800000U | (fraction << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112U) << 23) | (fraction << 13));
  const float magnitude = static_cast<float>(fraction) * 0x1p-24F;  // subnormals are exact in float32
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(magnitude));
}

std::uint16_t f32_to_f16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000U;
  const std::uint32_t magnitude = bits & 0x7fffffffU;
  if (magnitude > 0x7f800000U) return static_cast<std::uint16_t>(sign | 0x7e00U);   // NaN
  if (magnitude >= 0x477ff000U) return static_cast<std::uint16_t>(sign | 0x7c00U);  // rounds to infinity
  if (magnitude < 0x38800000U) {
    // Below 2^-14: adding 0.5 aligns the value so that the float addition itself rounds to nearest even at 2^-24.
    const float aligned = std::bit_cast<float>(magnitude) + 0.5F;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(aligned) - 0x3f000000U));
  }
  const std::uint32_t rounded = magnitude + 0xfffU + ((magnitude >> 13) & 1U);
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000U) >> 13));
}

namespace {

using U16 = std::uint16_t;

template <typename From, typename To, typename Convert>
void convert_each(const void* source, void* result, std::int64_t count, const Convert& convert) {
  const From* from = static_cast<const From*>(source);
  To* to = static_cast<To*>(result);
  for (std::int64_t i = 0; i < count; ++i) to[i] = convert(from[i]);
}

// Position of the first element whose bits without the sign are at least `limit`. Bits of magnitudes order as
// magnitudes do, and as signed numbers, which every vector unit compares.
template <typename T>
std::int64_t first_from(const void* data, std::int64_t count, T limit) {
  constexpr std::int64_t kStep = 2048;  // scanned without a branch per element
  constexpr T kMagnitude = std::numeric_limits<T>::max();
  const T* bits = static_cast<const T*>(data);
  for (std::int64_t begin = 0; begin < count; begin += kStep) {
    const std::int64_t end = std::min(begin + kStep, count);
    T found = 0;
    for (std::int64_t i = begin; i < end; ++i) {
      found = static_cast<T>(found | ((bits[i] & kMagnitude) >= limit ? T{-1} : T{0}));
    }
    if (found == 0) continue;
    for (std::int64_t i = begin; i < end; ++i) {
      if ((bits[i] & kMagnitude) >= limit) return i;
    }
  }
  return -1;
}

}  // namespace

void convert_elements(const void* source, DType from, void* result, DType to, std::int64_t count) {
  if (from == to) {
    std::memcpy(result, source, static_cast<std::size_t>(count * size_of(from)));
  } else if (from == DType::kFloat32 && to == DType::kFloat16) {
    convert_each<float, U16>(source, result, count, f32_to_f16);
  } else if (from == DType::kFloat32) {
    convert_each<float, U16>(source, result, count, f32_to_bf16);
  } else if (from == DType::kFloat16 && to == DType::kFloat32) {
    convert_each<U16, float>(source, result, count, f16_to_f32);
  } else if (from == DType::kFloat16) {
    convert_each<U16, U16>(source, result, count, [](U16 bits) { return f32_to_bf16(f16_to_f32(bits)); });
  } else if (to == DType::kFloat32) {
    convert_each<U16, float>(source, result, count, bf16_to_f32);
  } else {
    convert_each<U16, U16>(source, result, count, [](U16 bits) { return f32_to_f16(bf16_to_f32(bits)); });
  }
}

std::int64_t first_not_finite(const void* data, DType dtype, DType to, std::int64_t count) {
  using I16 = std::int16_t;
  const bool small = to == DType::kFloat16;  // whose largest number is 65504; from 65520 on values round to infinity
  switch (dtype) {
    case DType::kFloat32:
      return first_from<std::int32_t>(data, count,
                                      small                    ? 0x477ff000
                                      : to == DType::kBFloat16 ? 0x7f7f8000
                                                               : 0x7f800000);
    case DType::kFloat16:
      return first_from<I16>(data, count, I16{0x7c00});
    case DType::kBFloat16:
      return first_from<I16>(data, count, small ? I16{0x4780} : I16{0x7f80});
    case DType::kInt8:
      break;
  }
  return -1;
}

}  // namespace stagecoach
