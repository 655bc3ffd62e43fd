#include <doctest/doctest.h>

#include <random>
#include <set>

#include "runtime/random.hpp"

using namespace stagecoach;

namespace {
using Words = std::array<std::uint32_t, 4>;
}

TEST_CASE("Philox gives the published known answers") {
  // Random123's kat_vectors, philox4x32-10.
  CHECK(philox({0, 0, 0, 0}, {0, 0}) == Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(philox({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}) ==
        Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
        Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("uniform numbers fill [0, 1) and depend on every key") {
  std::random_device seed;
  const std::uint64_t s = (std::uint64_t{seed()} << 32) | seed();
  double sum = 0.0, squares = 0.0;
  constexpr int kCount = 100000;
  for (int i = 0; i < kCount; ++i) {
    const double u = uniform(s, static_cast<std::uint32_t>(i % 7), static_cast<std::uint32_t>(i));
    REQUIRE(u >= 0.0);
    REQUIRE(u < 1.0);
    sum += u;
    squares += u * u;
  }
  // Ten standard deviations of the mean and of the mean square.
  CHECK(sum / kCount == doctest::Approx(0.5).epsilon(10 * 2 * 0.2887 / 316.2));
  CHECK(squares / kCount == doctest::Approx(1.0 / 3).epsilon(10 * 3 * 0.2981 / 316.2));
  const double base = uniform(s, 3, 5);
  CHECK(base == uniform(s, 3, 5));
  for (int bit = 0; bit < 64; ++bit) CHECK(uniform(s ^ (std::uint64_t{1} << bit), 3, 5) != base);
  CHECK(uniform(s, 4, 5) != base);
  CHECK(uniform(s, 3, 6) != base);
  CHECK(uniform(s, 5, 3) != base);
}

TEST_CASE("requests have seeds of their own") {
  std::set<std::uint64_t> seeds;
  for (std::uint64_t run = 0; run < 100; ++run) {
    for (std::int64_t index = 0; index < 100; ++index) seeds.insert(request_seed(run, index));
  }
  CHECK(seeds.size() == 10000);
}
