// Accuracy of the vector functions against double precision, and of vector conversions against the scalar
// ones.
#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numbers>

#include "kernels/cpu/kernels.hpp"
#include "tests/unit/kernels_fixture.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

std::vector<Simd> available() {
  std::vector<Simd> result;
  for (const Simd simd : kEverySimd) {
    if (!simd_name(simd).empty()) result.push_back(simd);
  }
  return result;
}

// Floats of both signs, all exponents, from a random start with a step that is a prime.
std::vector<float> sampled_floats(Random& random) {
  std::vector<float> xs;
  for (std::uint64_t bits = static_cast<std::uint64_t>(random.between(0, 9972)); bits <= 0xffffffffU; bits += 9973) {
    const float x = std::bit_cast<float>(static_cast<std::uint32_t>(bits));
    if (std::isfinite(x)) xs.push_back(x);
  }
  for (int i = 0; i < 200'000; ++i) xs.push_back(random.value(-110.0F, 90.0F));
  for (int i = 0; i < 200'000; ++i) xs.push_back(random.value(-8.0F, 8.0F));
  return xs;
}

double exact(Activation activation, double x) {
  switch (activation) {
    case Activation::kGeluTanh: {
      const double u = std::sqrt(2.0 / std::numbers::pi) * (x + 0.044715 * x * x * x);
      return x / (1.0 + std::exp(-2.0 * u));
    }
    case Activation::kGeluErf:
      return 0.5 * x * std::erfc(-x / std::numbers::sqrt2);
    case Activation::kSilu:
      return x / (1.0 + std::exp(-x));
    case Activation::kRelu:
      return std::max(x, 0.0);
    case Activation::kNone:
      break;
  }
  return x;
}

}  // namespace

TEST_CASE("exp is within 1.1 ulp of the exact value, also where it underflows, and saturates") {
  Random random = fresh_random();
  const std::vector<float> xs = sampled_floats(random);
  std::vector<float> ys(xs.size());
  for (const Simd simd : available()) {
    const cpu::Kernels kernels = cpu::kernels_for(simd);
    kernels.exp(xs.data(), ys.data(), static_cast<std::int64_t>(xs.size()));
    double worst = 0.0;
    float worst_at = 0.0F;
    for (std::size_t i = 0; i < xs.size(); ++i) {
      const double want = std::exp(double{xs[i]});
      if (want > double{std::numeric_limits<float>::max()} * (1.0 + 0x1p-25)) {
        REQUIRE(ys[i] == std::numeric_limits<float>::infinity());
        continue;
      }
      const double ulp = std::ldexp(1.0, std::max(std::ilogb(std::max(want, 1e-300)), -126) - 23);
      const double error = std::abs(double{ys[i]} - want) / ulp;
      if (error > worst) worst = error, worst_at = xs[i];
    }
    MESSAGE(simd_name(simd) << ": exp is off by at most " << worst << " ulp, at " << worst_at);
    CHECK(worst <= 1.1);
    const float infinity = std::numeric_limits<float>::infinity();
    const std::vector<float> special = {infinity, -infinity, std::nanf(""), 0.0F, -0.0F, 1e38F, -1e38F};
    std::vector<float> result(special.size());
    kernels.exp(special.data(), result.data(), 7);
    CHECK(result[0] == infinity);
    CHECK(result[1] == 0.0F);
    CHECK(std::isnan(result[2]));
    CHECK(result[3] == 1.0F);
    CHECK(result[4] == 1.0F);
    CHECK(result[5] == infinity);
    CHECK(result[6] == 0.0F);
  }
}

TEST_CASE("2 to the power of what is not positive is within 2.5 ulp, and 0 below -125.5") {
  Random random = fresh_random();
  const float factor = random.value(0.01F, 3.0F);
  std::vector<float> xs;
  for (int i = 0; i < 400'000; ++i) xs.push_back(random.value(-125.0F, 0.0F) / factor);
  for (int i = 0; i < 400'000; ++i) xs.push_back(random.value(-2.0F, 0.0F) / factor);
  std::vector<float> ys(xs.size());
  for (const Simd simd : available()) {
    const cpu::Kernels kernels = cpu::kernels_for(simd);
    kernels.exp2_of_negative(xs.data(), factor, ys.data(), static_cast<std::int64_t>(xs.size()));
    double worst = 0.0;
    for (std::size_t i = 0; i < xs.size(); ++i) {
      const double want = std::exp2(double{xs[i]} * double{factor});
      worst = std::max(worst, std::abs(double{ys[i]} - want) / std::ldexp(1.0, std::ilogb(want) - 23));
    }
    MESSAGE(simd_name(simd) << ": exp2_of_negative is off by at most " << worst << " ulp, factor " << factor);
    CHECK(worst <= 2.5);
    const float infinity = std::numeric_limits<float>::infinity();
    const std::vector<float> special = {-infinity, std::nanf(""), std::nanf("0x3fff"), infinity,
                                        0.0F,      -0.0F,         -125.6F / factor,    -1e38F};
    std::vector<float> result(special.size());
    kernels.exp2_of_negative(special.data(), factor, result.data(), static_cast<std::int64_t>(special.size()));
    CHECK(result[0] == 0.0F);
    CHECK(std::isnan(result[1]));
    CHECK(std::isnan(result[2]));
    CHECK(std::isnan(result[3]));  // scores that overflowed do not pass for numbers
    CHECK(result[4] == 1.0F);
    CHECK(result[5] == 1.0F);
    CHECK(result[6] == 0.0F);
    CHECK(result[7] == 0.0F);
  }
}

TEST_CASE("activations are within 2.5e-7 |x| of the exact value and keep NaN") {
  Random random = fresh_random();
  const std::vector<float> xs = sampled_floats(random);
  std::vector<float> ys(xs.size());
  for (const Simd simd : available()) {
    const cpu::Kernels kernels = cpu::kernels_for(simd);
    for (const Activation activation :
         {Activation::kGeluTanh, Activation::kGeluErf, Activation::kRelu, Activation::kSilu}) {
      kernels.activate(activation, xs.data(), ys.data(), static_cast<std::int64_t>(xs.size()));
      double worst = 0.0;
      float worst_at = 0.0F;
      for (std::size_t i = 0; i < xs.size(); ++i) {
        const double error = std::abs(double{ys[i]} - exact(activation, xs[i])) / (std::abs(double{xs[i]}) + 1e-38);
        if (!(error <= worst)) worst = error, worst_at = xs[i];
      }
      MESSAGE(simd_name(simd) << ": activation " << static_cast<int>(activation) << " is off by at most " << worst
                              << " |x|, at " << worst_at);
      CHECK(worst <= 2.5e-7);
      const float nan = std::nanf("");
      float result = 0.0F;
      kernels.activate(activation, &nan, &result, 1);
      CHECK(std::isnan(result));
    }
  }
}

TEST_CASE("vector conversions give the bits of the scalar ones") {
  Random random = fresh_random();
  std::vector<std::uint16_t> all(65536 + 3);
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::uint16_t>(i);
  std::vector<float> xs = sampled_floats(random);
  for (const float special : {std::nanf(""), INFINITY, -INFINITY, 65519.9F, 65520.0F, 0x1p-25F, 0x1.000002p-25F})
    xs.push_back(special);
  for (const Simd simd : available()) {
    const cpu::Kernels kernels = cpu::kernels_for(simd);
    for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
      std::vector<float> wide(all.size());
      kernels.widen(all.data(), dtype, wide.data(), static_cast<std::int64_t>(all.size()));
      for (std::size_t i = 0; i < all.size(); ++i) {
        const float want = load_element(all.data(), dtype, static_cast<std::int64_t>(i));
        if (std::isnan(want)) {
          REQUIRE(std::isnan(wide[i]));
        } else {
          REQUIRE(std::bit_cast<std::uint32_t>(wide[i]) == std::bit_cast<std::uint32_t>(want));
        }
      }
      std::vector<std::uint16_t> narrow(xs.size());
      kernels.narrow(xs.data(), narrow.data(), dtype, static_cast<std::int64_t>(xs.size()));
      for (std::size_t i = 0; i < xs.size(); ++i) {
        const std::uint16_t want = dtype == DType::kFloat16 ? f32_to_f16(xs[i]) : f32_to_bf16(xs[i]);
        if (std::isnan(xs[i])) {
          REQUIRE(std::isnan(load_element(&narrow[i], dtype, 0)));
        } else {
          REQUIRE(narrow[i] == want);
        }
      }
    }
  }
}
