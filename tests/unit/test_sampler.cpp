#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <limits>

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
