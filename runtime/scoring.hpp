// Scoring texts that are longer than the model's context: which windows, and what their tokens say together.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/request.hpp"

namespace stagecoach {

struct ScoreWindow {
  std::int64_t begin = 0, end = 0;  // tokens [begin, end) of the text
  std::int32_t score_from = 0;      // the first token that this window scores, counted from `begin`
  bool operator==(const ScoreWindow&) const = default;
};

// Windows of `n_positions` tokens that begin at 0, stride, 2 * stride, ...; the last ends where the text does. Each
// scores the tokens that none before it scored, so every token but the text's first is scored exactly once, with at
// least n_positions - stride tokens before it once there are so many. One token has no windows. 1 <= stride <
// n_positions, unless n_positions is 1: then nothing can be scored and there are none. (The sliding window of Hugging
// Face's "Perplexity of fixed-length models".)
std::vector<ScoreWindow> score_windows(std::int64_t tokens, std::int32_t n_positions, std::int32_t stride);

// The requests that score `text`, one per window; their sample numbers count the windows.
std::vector<Request> window_requests(const Request& text, std::int32_t n_positions, std::int32_t stride);

struct Score {
  std::int64_t scored = 0;   // tokens that have a log-probability
  double sum_logprob = 0.0;  // natural; summed in order

  void add(std::span<const float> logprobs);
  void add(const Score& other);
  double perplexity() const;  // exp(-sum / scored); NaN when nothing was scored
};

}  // namespace stagecoach
