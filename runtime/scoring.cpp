#include "runtime/scoring.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace stagecoach {

std::int64_t score_window_count(std::int64_t tokens, std::int32_t n_positions, std::int32_t stride) {
  if (n_positions < 2 || tokens < 2) return 0;
  if (stride < 1 || stride >= n_positions) {
    throw std::invalid_argument(fmt::format("stride {} with windows of {} tokens", stride, n_positions));
  }
  return 1 + (std::max<std::int64_t>(tokens - n_positions, 0) + stride - 1) / stride;
}

// The first token of all has no context; later windows leave out what the one before them held.
ScoreWindow score_window(std::int64_t tokens, std::int32_t n_positions, std::int32_t stride, std::int64_t index) {
  const std::int64_t begin = index * stride;
  return {begin, std::min(tokens, begin + n_positions), index == 0 ? 1 : n_positions - stride};
}

Request window_request(const Request& text, std::int32_t n_positions, std::int32_t stride, std::int64_t index) {
  const ScoreWindow window = score_window(static_cast<std::int64_t>(text.tokens.size()), n_positions, stride, index);
  Request request;
  request.index = text.index;
  request.tokens.assign(text.tokens.begin() + window.begin, text.tokens.begin() + window.end);
  request.score_from = window.score_from;
  request.first_sample = static_cast<std::int32_t>(index);
  return request;
}

void Score::add(std::span<const float> logprobs) {
  for (const float logprob : logprobs) sum_logprob += static_cast<double>(logprob);
  scored += static_cast<std::int64_t>(logprobs.size());
}

void Score::add(const Score& other) {
  sum_logprob += other.sum_logprob;
  scored += other.scored;
}

double Score::perplexity() const {
  if (scored == 0) return std::numeric_limits<double>::quiet_NaN();
  return std::exp(-sum_logprob / static_cast<double>(scored));
}

}  // namespace stagecoach
