// Conversions of half and bfloat16, for all 16-bit patterns, against their definition as sign, exponent and fraction.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace {

// What the bits mean, by the book.
double value_of(unsigned bits, int exponent_bits, int fraction_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const auto exponent = static_cast<int>((bits >> fraction_bits) & ((1u << exponent_bits) - 1));
  const double fraction = (bits & ((1u << fraction_bits) - 1)) / std::ldexp(1.0, fraction_bits);
  const double sign = (bits & 0x8000u) != 0 ? -1 : 1;
  if (exponent == (1 << exponent_bits) - 1) return fraction != 0 ? std::nan("") : sign * HUGE_VAL;
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias);
  return sign * std::ldexp(1 + fraction, exponent - bias);
}

template <typename ToFloat, typename FromFloat>
void check_type(int exponent_bits, int fraction_bits, ToFloat to_float, FromFloat from_float) {
  long wrong = 0;
  const unsigned infinity = ((1u << exponent_bits) - 1) << fraction_bits;
  for (unsigned bits = 0; bits < 0x10000u; ++bits) {
    const double expected = value_of(bits, exponent_bits, fraction_bits);
    const float got = to_float(static_cast<std::uint16_t>(bits));
    if (std::isnan(expected)) {
      wrong += !std::isnan(got) || from_float(got) != 0x7FFF;
      continue;
    }
    wrong += got != expected || std::signbit(got) != std::signbit(expected);
    wrong += from_float(got) != bits;
    // Between this and the next larger magnitude; the one after the largest is where the next power of two would be.
    const unsigned magnitude = bits & 0x7FFFu;
    if (magnitude >= infinity) continue;
    const double above = magnitude + 1 == infinity ? std::copysign(std::ldexp(1.0, 1 << (exponent_bits - 1)), expected)
                                                   : value_of(bits + 1, exponent_bits, fraction_bits);
    const double exact_middle = (expected + above) / 2;
    if (std::abs(exact_middle) > static_cast<double>(std::numeric_limits<float>::max())) continue;
    const auto middle = static_cast<float>(exact_middle);
    if (middle != exact_middle) continue;  // below float's subnormals
    wrong += from_float(middle) != (bits % 2 == 0 ? bits : bits + 1);
    wrong += from_float(std::nextafter(middle, 0.0f)) != bits;
    wrong += from_float(std::nextafter(middle, std::copysign(HUGE_VALF, middle))) != bits + 1;
  }
  CHECK(wrong == 0);
  CHECK(from_float(HUGE_VALF) == infinity);
  CHECK(from_float(-HUGE_VALF) == (infinity | 0x8000u));
  CHECK(from_float(std::numeric_limits<float>::max()) == infinity);
  CHECK(from_float(std::numeric_limits<float>::denorm_min()) == 0);
  CHECK(from_float(-0.0f) == 0x8000u);
}

}  // namespace

TEST_CASE("half: every pattern, every midpoint") {
  check_type(
      5, 10, [](std::uint16_t bits) { return __half2float(__ushort_as_half(bits)); },
      [](float x) -> unsigned { return __half_as_ushort(__float2half_rn(x)); });
}

TEST_CASE("bfloat16: every pattern, every midpoint") {
  check_type(
      8, 7, [](std::uint16_t bits) { return __bfloat162float(__ushort_as_bfloat16(bits)); },
      [](float x) -> unsigned { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); });
}

TEST_CASE("pairs hold their first element low") {
  CHECK(std::bit_cast<std::uint32_t>(__floats2half2_rn(1.0f, -2.0f)) == 0xC0003C00u);
  CHECK(std::bit_cast<std::uint32_t>(__floats2bfloat162_rn(1.0f, -2.0f)) == 0xC0003F80u);
  const float2 half = __half22float2(__float22half2_rn(make_float2(0.5f, 3.0f)));
  const float2 bfloat16 = __bfloat1622float2(__float22bfloat162_rn(make_float2(0.5f, 3.0f)));
  CHECK((half.x == 0.5f && half.y == 3.0f && bfloat16.x == 0.5f && bfloat16.y == 3.0f));
}

TEST_CASE("bytes: permutation and dot product") {
  CHECK(__byte_perm(0x33221100u, 0x77665544u, 0x7420u) == 0x77442200u);
  CHECK(__byte_perm(0x80u, 0u, 0x0198u) == 0x800000FFu);
  CHECK(__dp4a(0x7F80FF01, 0x7F80FF01, 10) == 10 + 127 * 127 + 128 * 128 + 1 + 1);
}
