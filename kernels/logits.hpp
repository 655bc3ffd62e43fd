// What picking a token needs of a row of logits, in some bytes instead of all of them: Backend::summarize_logits makes
// it where the logits lie.
//
// A summary is totals and then the `top` largest logits, without gaps; those of several rows follow one another in
// order. Everything in it is 4 bytes wide and aligned so. Knows rows of numbers; how a token is drawn is not its
// concern.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/tensor.hpp"

namespace stagecoach {

inline constexpr std::int32_t kMostTopLogits = 256;

// What is asked of one row.
struct LogitsQuery {
  std::int32_t top = 0;     // how many of the largest: 0 to kMostTopLogits, no more than the row has
  std::int32_t wanted = 0;  // a token whose logit is asked for
  // Before the largest are chosen, the logits of these tokens become x * penalty where x < 0, otherwise x / penalty:
  // in float64, rounded to float32. Each counts once.
  double penalty = 1.0;
  std::span<const std::int32_t> penalised = {};
};

// Of the row as it is, without the penalty. Where there is a NaN, nothing else in the summary means anything.
struct LogitsTotals {
  float largest = 0.0F;
  float sum = 0.0F;  // over tokens, exp(logit - largest); means nothing unless `largest` is finite
  float wanted = 0.0F;
  std::int32_t has_nan = 0;
};

struct TopLogit {
  std::int32_t token = 0;
  float logit = 0.0F;
  float penalised = 0.0F;  // 0 may have either sign
};

// A row's summary where the host can read it.
struct LogitsSummary {
  const LogitsTotals* totals = nullptr;
  std::span<const TopLogit> top;  // by penalised logit, largest first; ties: lowest token first

  // No NaN, and a token can be picked: the largest logit is finite, also after the penalty.
  bool sound() const;
  // Natural log-softmax of a token with this `logit`, of a sound summary.
  float log_probability(float logit) const;
};

constexpr std::int64_t summary_bytes(const LogitsQuery& query) {
  return static_cast<std::int64_t>(sizeof(LogitsTotals)) + query.top * static_cast<std::int64_t>(sizeof(TopLogit));
}
std::int64_t summary_bytes(std::span<const LogitsQuery> queries);
inline constexpr std::int64_t kMostSummaryBytes = summary_bytes(LogitsQuery{.top = kMostTopLogits});

// The answer to `query` at `at`, which advances to the next one.
LogitsSummary read_summary(const std::byte*& at, const LogitsQuery& query);

// The definition of Backend::summarize_logits, for logits in host memory; sums in float64.
void summarize_on_host(Tensor logits, std::span<const LogitsQuery> queries, void* out);

}  // namespace stagecoach
