// Element conversions: every 16-bit value, and every tie between neighbours.
#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kernels/convert.hpp"

using namespace stagecoach;

namespace {

// By the definition of the format: (-1)^s 2^(e - bias) (1 + f / 2^width), subnormals without the 1.
float by_definition(std::uint32_t bits, int exponent_bits, int fraction_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const std::uint32_t fraction = bits & ((1U << fraction_bits) - 1);
  const int exponent = static_cast<int>(bits >> fraction_bits) & ((1 << exponent_bits) - 1);
  const float sign = (bits >> (exponent_bits + fraction_bits)) != 0 ? -1.0F : 1.0F;
  if (exponent == (1 << exponent_bits) - 1) {
    return fraction != 0 ? std::numeric_limits<float>::quiet_NaN() : sign * std::numeric_limits<float>::infinity();
  }
  const double significand = fraction * std::ldexp(1.0, -fraction_bits) + (exponent == 0 ? 0.0 : 1.0);
  return sign * static_cast<float>(std::ldexp(significand, (exponent == 0 ? 1 : exponent) - bias));
}

template <class Widen, class Narrow>
void check_format(int exponent_bits, int fraction_bits, Widen widen, Narrow narrow) {
  const std::uint32_t infinity = ((1U << exponent_bits) - 1) << fraction_bits;
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const float want = by_definition(bits, exponent_bits, fraction_bits);
    const float got = widen(static_cast<std::uint16_t>(bits));
    if (std::isnan(want)) {
      REQUIRE(std::isnan(got));
      REQUIRE(std::isnan(widen(narrow(got))));
      continue;
    }
    REQUIRE(std::bit_cast<std::uint32_t>(got) == std::bit_cast<std::uint32_t>(want));
    REQUIRE(narrow(got) == bits);
    // Halfway to the next larger magnitude goes to the even one; a float nearer to either side goes there.
    // Beyond the largest finite value the next would be one step further on.
    if ((bits & 0x7fffU) >= infinity) continue;
    const double step = std::ldexp(
        1.0, std::max(std::ilogb(want == 0.0F ? 0x1p-149F : want), 2 - (1 << (exponent_bits - 1))) - fraction_bits);
    const double middle = std::abs(double{want}) + step / 2.0;
    if (middle > double{std::numeric_limits<float>::max()} || static_cast<double>(static_cast<float>(middle)) != middle)
      continue;
    const float tie = std::copysign(static_cast<float>(middle), want);
    REQUIRE(narrow(tie) == (bits % 2 == 0 ? bits : bits + 1));
    REQUIRE(narrow(std::nextafter(tie, 0.0F)) == bits);
    REQUIRE(narrow(std::nextafter(tie, std::copysign(INFINITY, want))) == bits + 1);
  }
}

}  // namespace

TEST_CASE("float16: all values, and rounding to nearest even between all neighbours") {
  check_format(5, 10, f16_to_f32, f32_to_f16);
  CHECK(f32_to_f16(65504.0F) == 0x7bff);
  CHECK(f32_to_f16(1e10F) == 0x7c00);
  CHECK(f32_to_f16(-1e10F) == 0xfc00);
  CHECK(f32_to_f16(1e-10F) == 0);
  CHECK(f32_to_f16(-1e-10F) == 0x8000);
}

TEST_CASE("bfloat16: all values, and rounding to nearest even between all neighbours") {
  check_format(8, 7, bf16_to_f32, f32_to_bf16);
  CHECK(f32_to_bf16(std::numeric_limits<float>::max()) == 0x7f80);
  CHECK(std::isnan(bf16_to_f32(f32_to_bf16(std::bit_cast<float>(0x7f800001U)))));
}

TEST_CASE("load_element and store_element agree for every dtype") {
  float wide[2] = {};
  alignas(4) std::uint16_t narrow[4] = {};
  store_element(wide, DType::kFloat32, 1, 1.0F / 3.0F);
  CHECK(load_element(wide, DType::kFloat32, 1) == 1.0F / 3.0F);
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    store_element(narrow, dtype, 1, -1.5F);
    CHECK(load_element(narrow, dtype, 1) == -1.5F);
    CHECK(narrow[0] == 0);
  }
}

TEST_CASE("arrays are converted as their elements are, and what is not finite is found") {
  std::mt19937 random{std::random_device{}()};
  constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
  for (const DType from : kDTypes) {
    for (const DType to : kDTypes) {
      const std::int64_t count = 5000 + static_cast<std::int64_t>(random() % 5000);
      std::vector<std::byte> source(static_cast<std::size_t>(count * size_of(from)));
      for (std::byte& byte : source) byte = static_cast<std::byte>(random());
      std::vector<std::byte> expected(static_cast<std::size_t>(count * size_of(to)));
      std::int64_t first = -1;
      for (std::int64_t i = 0; i < count; ++i) {
        const float value = load_element(source.data(), from, i);
        store_element(expected.data(), to, i, value);
        if (first < 0 && !std::isfinite(value)) first = i;
      }
      if (from == to) expected = source;  // keeps every NaN as it is
      std::vector<std::byte> result(expected.size());
      convert_elements(source.data(), from, result.data(), to, count);
      CHECK(result == expected);
      CHECK(first_not_finite(source.data(), from, count) == first);
      // Without what is not finite to begin with, only what `to` cannot hold is left.
      std::int64_t first_too_large = -1;
      for (std::int64_t i = count - 1; i >= 0; --i) {
        if (!std::isfinite(load_element(source.data(), from, i))) store_element(source.data(), from, i, 1.0F);
        store_element(expected.data(), to, i, load_element(source.data(), from, i));
        if (!std::isfinite(load_element(expected.data(), to, i))) first_too_large = i;
      }
      CHECK(first_not_finite(source.data(), from, to, count) == first_too_large);
    }
    const std::vector<std::byte> zeros(40000);
    CHECK(first_not_finite(zeros.data(), from, 10000) == -1);
    CHECK(first_not_finite(zeros.data(), from, 0) == -1);
  }
}
