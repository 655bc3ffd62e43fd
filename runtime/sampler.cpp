#include "runtime/sampler.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace stagecoach {

std::int32_t pick_greedy(std::span<const float> logits) {
  std::size_t best = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i])) {
      throw std::runtime_error(
          fmt::format("the logit of token {} is not a number: the weights overflow or are damaged", i));
    }
    if (logits[i] > logits[best]) best = i;
  }
  if (!std::isfinite(logits[best])) {
    throw std::runtime_error(
        fmt::format("the largest logit, of token {}, is {}: the weights overflow or are damaged", best, logits[best]));
  }
  return static_cast<std::int32_t>(best);
}

float log_probability(std::span<const float> logits, std::int32_t token) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0.0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
  return static_cast<float>(static_cast<double>(logits[static_cast<std::size_t>(token)]) - largest - std::log(sum));
}

}  // namespace stagecoach
