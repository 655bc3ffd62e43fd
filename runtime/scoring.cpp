#include "runtime/scoring.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace stagecoach {

std::vector<ScoreWindow> score_windows(std::int64_t tokens, std::int32_t n_positions, std::int32_t stride) {
  std::vector<ScoreWindow> windows;
  if (n_positions < 2 || tokens < 2) return windows;
  if (stride < 1 || stride >= n_positions) {
    throw std::invalid_argument(fmt::format("stride {} with windows of {} tokens", stride, n_positions));
  }
  std::int64_t scored = 1;  // tokens before this one need no window any more; the first of all has no context
  for (std::int64_t begin = 0; scored < tokens; begin += stride) {
    const std::int64_t end = std::min(tokens, begin + n_positions);
    windows.push_back({begin, end, static_cast<std::int32_t>(scored - begin)});
    scored = end;
  }
  return windows;
}

std::vector<Request> window_requests(const Request& text, std::int32_t n_positions, std::int32_t stride) {
  std::vector<Request> requests;
  for (const ScoreWindow& window : score_windows(static_cast<std::int64_t>(text.tokens.size()), n_positions, stride)) {
    Request request;
    request.index = text.index;
    request.tokens.assign(text.tokens.begin() + window.begin, text.tokens.begin() + window.end);
    request.score_from = window.score_from;
    request.first_sample = static_cast<std::int32_t>(requests.size());
    requests.push_back(std::move(request));
  }
  return requests;
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
