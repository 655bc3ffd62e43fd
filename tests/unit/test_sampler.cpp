#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "runtime/sampler.hpp"

using namespace stagecoach;

TEST_CASE("greedy takes the largest logit and the lowest id among equals") {
  CHECK(pick_greedy(std::array{0.0F, 2.0F, 1.0F, 2.0F}) == 1);
  CHECK(pick_greedy(std::array{-5.0F}) == 0);
  const float inf = std::numeric_limits<float>::infinity();
  CHECK(pick_greedy(std::array{-inf, -3.0F, -inf}) == 1);
}

TEST_CASE("damaged logits are an error, not a token") {
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_WITH(pick_greedy(std::array{1.0F, nan}),
                    "the logit of token 1 is not a number: the weights overflow or are damaged");
  CHECK_THROWS(pick_greedy(std::array{1.0F, inf}));
  CHECK_THROWS(pick_greedy(std::array{nan}));
  CHECK_THROWS(pick_greedy(std::array{-inf, -inf}));
}

TEST_CASE("log-probabilities are those of the softmax, also far from zero") {
  const std::array logits{1000.0F, 1001.0F, 999.0F};
  const double sum = std::exp(-1.0) + 1.0 + std::exp(-2.0);
  CHECK(log_probability(logits, 1) == doctest::Approx(-std::log(sum)));
  CHECK(log_probability(logits, 2) == doctest::Approx(-2.0 - std::log(sum)));
  CHECK(log_probability(std::array{0.0F, 0.0F, 0.0F, 0.0F}, 3) == doctest::Approx(std::log(0.25)));
}

TEST_CASE("top-k keeps k tokens and top-p the fewest that reach p; ties go to the lowest id") {
  Sampler sampler;
  const std::array logits{0.0F, 2.0F, 1.0F, 2.0F, 1.0F};
  const auto ids = [&](const SamplingOptions& options) {
    std::vector<std::int32_t> kept;
    double sum = 0.0;
    for (const Candidate& c : sampler.distribution(logits, options, {})) {
      kept.push_back(c.id);
      sum += c.probability;
    }
    CHECK(sum == doctest::Approx(1.0));
    return kept;
  };
  using Ids = std::vector<std::int32_t>;
  CHECK(ids({1.0, 0, 1.0, 1.0}) == Ids{0, 1, 2, 3, 4});
  CHECK(ids({1.0, 1, 1.0, 1.0}) == Ids{1});
  CHECK(ids({1.0, 3, 1.0, 1.0}) == Ids{1, 2, 3});
  CHECK(ids({1.0, 9, 1.0, 1.0}) == Ids{0, 1, 2, 3, 4});
  // exp(2), exp(2), exp(1), exp(1), 1 over 21.2: 0.348, 0.348, 0.128, 0.128, 0.047
  CHECK(ids({1.0, 0, 0.3, 1.0}) == Ids{1});
  CHECK(ids({1.0, 0, 0.5, 1.0}) == Ids{1, 3});
  CHECK(ids({1.0, 0, 0.7, 1.0}) == Ids{1, 2, 3});
  CHECK(ids({1.0, 0, 0.0, 1.0}) == Ids{1});
  CHECK(ids({1.0, 2, 0.7, 1.0}) == Ids{1, 3});  // top-p counts what top-k left
}

TEST_CASE("extreme options do not break the draw") {
  Sampler sampler;
  const float inf = std::numeric_limits<float>::infinity();
  const std::array logits{-inf, 3.0F, 3.5F, -3e38F, 3e38F};
  for (const double u : {0.0, 0.5, 0x1.fffffffffffffp-1}) {
    CHECK(sampler.pick(logits, {1e-300, 0, 1.0, 1.0}, {}, u) == 4);
    CHECK(sampler.pick(logits, {1.0, 0, 1.0, 1.0}, {}, u) == 4);
    CHECK(sampler.pick(logits, {0.0, 7, 0.1, 1000.0}, std::array{4, 1}, u) == 4);
    const std::int32_t any = sampler.pick(std::array{0.0F, 0.0F, -inf}, {1000.0, 0, 1.0, 1.0}, {}, u);
    CHECK(any == (u < 0.5 ? 0 : 1));
  }
  CHECK_THROWS(sampler.pick(std::array{0.0F, std::numeric_limits<float>::quiet_NaN()}, {1.0, 0, 1.0, 1.0}, {}, 0.5));
}

TEST_CASE("top-p over many tokens keeps exactly what a full sort keeps") {
  std::mt19937 random(std::random_device{}());
  Sampler sampler;
  for (int round = 0; round < 20; ++round) {
    std::vector<float> logits(1 + random() % 5000);
    std::normal_distribution<float> normal(0.0F, 0.1F + static_cast<float>(random() % 5));
    for (float& logit : logits) logit = normal(random);
    const double p = static_cast<double>(random() % 1000) / 1000.0;
    std::vector<float> sorted = logits;
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    double total = 0.0;
    for (const float logit : sorted) total += std::exp(static_cast<double>(logit) - sorted[0]);
    std::size_t expected = 0;
    for (double sum = 0.0; expected < sorted.size() && (expected == 0 || sum < p * total); ++expected) {
      sum += std::exp(static_cast<double>(sorted[expected]) - sorted[0]);
    }
    const auto kept = sampler.distribution(logits, {1.0, 0, p, 1.0}, {});
    // Sums run in another order, so a token at the very border may fall on either side.
    CHECK(std::abs(static_cast<std::int64_t>(kept.size()) - static_cast<std::int64_t>(expected)) <= 1);
    std::vector<float> of_kept;
    for (const Candidate& c : kept) of_kept.push_back(logits[static_cast<std::size_t>(c.id)]);
    std::sort(of_kept.begin(), of_kept.end(), std::greater<>());
    CHECK(std::equal(of_kept.begin(), of_kept.end(), sorted.begin()));
  }
}
