// What a user asks for and gets: one prompt with its options, one finished sample.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace stagecoach {

struct Request {
  std::int64_t index = 0;             // position in the input, from 0
  std::optional<std::string> id;      // the user's own, if given: JSON text of a string or whole number
  std::optional<std::string> prompt;  // text, absent for token prompts
  std::vector<std::int32_t> tokens;   // the prompt's ids, at least one
  std::int32_t max_new_tokens = 0;    // at least one
  bool ignore_eos = false;
  bool logprobs = false;
};

enum class FinishReason : std::uint8_t { kLength, kEos, kStop };

struct Sample {
  std::int64_t index = 0;  // of the request
  std::int32_t sample = 0;
  std::int32_t prompt_tokens = 0;
  std::vector<std::int32_t> tokens;  // generated, with a final eos if there was one
  std::vector<float> logprobs;       // one per token when asked for, otherwise empty
  FinishReason finish = FinishReason::kLength;
};

}  // namespace stagecoach
