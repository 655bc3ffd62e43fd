#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "runtime/histogram.hpp"

using namespace stagecoach;

TEST_CASE("percentiles are those of the sorted values, within the stated error") {
  const unsigned seed = std::random_device()();
  CAPTURE(seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 20; ++round) {
    std::lognormal_distribution<double> values(std::uniform_real_distribution<double>(-12.0, 5.0)(random), 1.5);
    std::vector<double> sorted(1 + random() % 5000);
    Histogram all, halves[2];
    for (double& value : sorted) {
      value = values(random);
      all.add(value);
      halves[random() % 2].add(value);
    }
    std::sort(sorted.begin(), sorted.end());
    halves[0].merge(halves[1]);
    for (const Histogram& histogram : {all, halves[0]}) {
      CHECK(histogram.count() == static_cast<std::int64_t>(sorted.size()));
      CHECK(histogram.max() == sorted.back());
      for (const double share : {0.001, 0.5, 0.9, 0.99, 1.0}) {
        const double rank = std::ceil(share * static_cast<double>(sorted.size()));
        const double exact = sorted[static_cast<std::size_t>(std::max(rank, 1.0)) - 1];
        CAPTURE(share);
        CHECK(std::abs(histogram.quantile(share) - exact) <= Histogram::kRelativeError * exact * (1 + 1e-12));
      }
    }
  }
}

TEST_CASE("a histogram of nothing, of one value, and of values out of range") {
  Histogram histogram;
  CHECK(histogram.count() == 0);
  CHECK(histogram.quantile(0.5) == 0.0);
  CHECK(histogram.max() == 0.0);
  histogram.merge(Histogram());
  CHECK(histogram.count() == 0);

  Histogram one;
  one.add(0.37, 3);
  CHECK(one.count() == 3);
  for (const double share : {0.01, 0.5, 1.0}) CHECK(one.quantile(share) == 0.37);

  for (const double value : {0.0, -1.0, std::numeric_limits<double>::quiet_NaN()}) histogram.add(value);
  CHECK(histogram.quantile(1.0) == 0.0);
  histogram.add(1e300);
  histogram.add(std::numeric_limits<double>::infinity());
  CHECK(histogram.count() == 5);
  CHECK(histogram.quantile(0.5) >= 0.0);
  CHECK(histogram.quantile(0.5) < 1e-8);
  CHECK(histogram.quantile(1.0) > 1e7);
}

TEST_CASE("bounds of buckets: powers of two and their neighbours") {
  for (int exponent = -30; exponent < 24; ++exponent) {
    const double power = std::ldexp(1.0, exponent);
    for (const double value : {std::nextafter(power, 0.0), power, std::nextafter(power, 1e9)}) {
      Histogram histogram;
      histogram.add(value);
      histogram.add(value * 16);  // so that the largest value is another
      histogram.add(value / 16);  // and the smallest
      if (exponent > -26 && exponent < 20) {
        CHECK(std::abs(histogram.quantile(0.5) - value) <= Histogram::kRelativeError * value * (1 + 1e-12));
      }
    }
  }
}
