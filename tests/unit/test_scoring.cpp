#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <stdexcept>
#include <vector>

#include "runtime/scoring.hpp"

using namespace stagecoach;

namespace {

std::vector<ScoreWindow> windows_of(std::int64_t tokens, std::int32_t n_positions, std::int32_t stride) {
  std::vector<ScoreWindow> windows;
  for (std::int64_t i = 0; i < score_window_count(tokens, n_positions, stride); ++i) {
    windows.push_back(score_window(tokens, n_positions, stride, i));
  }
  return windows;
}

}  // namespace

TEST_CASE("windows: every token but the first is scored once, with enough before it") {
  std::mt19937 random(std::random_device{}());
  for (int round = 0; round < 3000; ++round) {
    const auto n_positions = static_cast<std::int32_t>(2 + random() % 40);
    const auto stride = static_cast<std::int32_t>(1 + random() % static_cast<unsigned>(n_positions - 1));
    const std::int64_t tokens = static_cast<std::int64_t>(random() % 200);
    INFO(tokens << " tokens, " << n_positions << " positions, stride " << stride);
    std::int64_t scored = 1;
    for (const ScoreWindow& w : windows_of(tokens, n_positions, stride)) {
      CHECK(w.begin % stride == 0);
      CHECK(w.end - w.begin <= n_positions);
      CHECK((w.end - w.begin == n_positions || w.end == tokens));
      CHECK(w.begin + w.score_from == scored);
      CHECK(w.score_from >= 1);
      if (w.begin > 0) CHECK(w.score_from == n_positions - stride);
      CHECK(w.end > scored);
      scored = w.end;
    }
    CHECK(scored == std::max<std::int64_t>(tokens, 1));
  }
}

TEST_CASE("windows of the simple cases") {
  CHECK(windows_of(1, 10, 5).empty());
  CHECK(windows_of(0, 10, 5).empty());
  CHECK(windows_of(100, 1, 1).empty());
  CHECK(windows_of(10, 10, 3) == std::vector<ScoreWindow>{{0, 10, 1}});
  CHECK(windows_of(12, 10, 9) == std::vector<ScoreWindow>{{0, 10, 1}, {9, 12, 1}});
  CHECK(windows_of(17, 10, 3) == std::vector<ScoreWindow>{{0, 10, 1}, {3, 13, 7}, {6, 16, 7}, {9, 17, 7}});
  CHECK_THROWS_AS(score_window_count(20, 10, 10), std::invalid_argument);
  CHECK_THROWS_AS(score_window_count(20, 10, 0), std::invalid_argument);
}

TEST_CASE("window requests carry the text's tokens and count the windows") {
  Request text;
  text.index = 4;
  for (std::int32_t t = 0; t < 17; ++t) text.tokens.push_back(t * t);
  REQUIRE(score_window_count(17, 10, 3) == 4);
  const Request window = window_request(text, 10, 3, 2);
  CHECK(window.index == 4);
  CHECK(window.first_sample == 2);
  CHECK(window.score_from == 7);
  CHECK(window.tokens == std::vector<std::int32_t>{36, 49, 64, 81, 100, 121, 144, 169, 196, 225});
}

TEST_CASE("perplexity is the exponential of the mean, and undefined without any") {
  Score score;
  CHECK(std::isnan(score.perplexity()));
  score.add(std::vector<float>{-1.0F, -3.0F});
  score.add(Score{2, -4.0});
  CHECK(score.scored == 4);
  CHECK(score.sum_logprob == -8.0);
  CHECK(score.perplexity() == doctest::Approx(std::exp(2.0)));
}
