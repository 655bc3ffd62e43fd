// From logits to a token. Stateless: the same logits and options give the same token on every layout.
#pragma once

#include <cstdint>
#include <span>

namespace stagecoach {

// Index of the largest logit; ties go to the lowest id. Throws std::runtime_error when a logit is NaN or none is
// finite.
std::int32_t pick_greedy(std::span<const float> logits);

// Natural log-softmax of `logits` at `token`, summed in float64 in order of ids.
float log_probability(std::span<const float> logits, std::int32_t token);

}  // namespace stagecoach
