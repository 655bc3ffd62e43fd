// Scoring texts that are longer than the model's context: which windows, and what their tokens say together.
#pragma once

#include <cstdint>
#include <span>

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
std::int64_t score_window_count(std::int64_t tokens, std::int32_t n_positions, std::int32_t stride);
// The `index`-th of them. None is longer than the first.
ScoreWindow score_window(std::int64_t tokens, std::int32_t n_positions, std::int32_t stride, std::int64_t index);

// The request that scores one window of `text`; its sample number is `index`. One at a time, because all windows of a
// long text hold its tokens many times over.
Request window_request(const Request& text, std::int32_t n_positions, std::int32_t stride, std::int64_t index);

struct Score {
  std::int64_t scored = 0;   // tokens that have a log-probability
  double sum_logprob = 0.0;  // natural; summed in order

  void add(std::span<const float> logprobs);
  void add(const Score& other);
  double perplexity() const;  // exp(-sum / scored); NaN when nothing was scored
};

}  // namespace stagecoach
