// What a user asks for and gets: one prompt with its options, one finished sample.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace stagecoach {

// How a token is drawn from logits, in this order: repetition penalty, temperature, top-k, top-p.
struct SamplingOptions {
  double temperature = 0.0;         // 0 is greedy: the largest logit after the penalty
  std::int32_t top_k = 0;           // only the k most probable tokens; 0 is off
  double top_p = 1.0;               // only the most probable tokens that together reach p; 1 is off
  double repetition_penalty = 1.0;  // logits of tokens already there are divided by it (negative ones multiplied)

  bool operator==(const SamplingOptions&) const = default;
};

// Ranges of the options, both ends included; NaN is outside of all.
template <typename T>
struct Bounds {
  T low, high;
  constexpr bool hold(T value) const { return value >= low && value <= high; }
};
inline constexpr Bounds<std::int64_t> kNewTokenBounds{1, 1 << 30};  // as many as a model may have positions
inline constexpr Bounds<double> kTemperatureBounds{0.0, 1000.0};
inline constexpr Bounds<std::int64_t> kTopKBounds{0, 1 << 30};
inline constexpr Bounds<double> kTopPBounds{0.0, 1.0};
inline constexpr Bounds<double> kPenaltyBounds{0.001, 1000.0};
inline constexpr Bounds<std::int64_t> kSeedBounds{0, INT64_MAX};
inline constexpr Bounds<std::int64_t> kSampleBounds{1, 1 << 20};
inline constexpr std::size_t kMaxStopBytes = 4096;  // of one stop string

constexpr bool is_valid(const SamplingOptions& o) {
  return kTemperatureBounds.hold(o.temperature) && kTopKBounds.hold(o.top_k) && kTopPBounds.hold(o.top_p) &&
         kPenaltyBounds.hold(o.repetition_penalty);
}

struct Request {
  std::int64_t index = 0;             // position in the input, from 0
  std::optional<std::string> id;      // the user's own, if given: JSON text of a string or whole number
  std::optional<std::string> prompt;  // text, absent for token prompts
  std::vector<std::int32_t> tokens;   // the prompt's ids, at least one
  std::int32_t max_new_tokens = 0;    // at least one
  bool ignore_eos = false;
  bool logprobs = false;
  SamplingOptions sampling;
  std::uint64_t seed = 0;  // with the sample's number and the position it determines every random number
  std::int32_t num_samples = 1;
  std::int32_t first_sample = 0;  // their numbers begin here
  std::vector<std::string> stop;  // generation ends where any of these bytes is complete in the new text
  // Above 0: nothing is generated; the sample's logprobs are those of tokens[score_from] and all after it, each given
  // the tokens before it.
  std::int32_t score_from = 0;
};

enum class FinishReason : std::uint8_t { kLength, kEos, kStop };

struct Sample {
  std::int64_t index = 0;   // of the request
  std::int32_t sample = 0;  // its number: first_sample to first_sample + num_samples - 1
  std::int32_t prompt_tokens = 0;
  std::vector<std::int32_t> tokens;  // generated, with a final eos if there was one
  std::vector<float> logprobs;       // one per token when asked for, otherwise empty
  FinishReason finish = FinishReason::kLength;
  std::int64_t text_bytes = -1;  // for kStop: bytes of the new text that stand before the stop string
};

}  // namespace stagecoach
