// From logits to a token. Stateless: the same logits, options, tokens so far and random number give the same token on
// every layout.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/logits.hpp"
#include "runtime/request.hpp"

namespace stagecoach {

struct Candidate {
  std::int32_t id;
  double probability;
};

// Keeps its scratch memory between calls.
class Sampler {
 public:
  // The token that `u`, uniform in [0, 1), stands for; with temperature 0 the largest logit. `seen`: the distinct
  // tokens of the sequence so far, for the repetition penalty; in any order. Ties go to the lowest id. Throws
  // std::runtime_error when a logit is NaN or none is finite.
  std::int32_t pick(std::span<const float> logits, const SamplingOptions& options, std::span<const std::int32_t> seen,
                    double u);
  // The same token from the largest logits alone, after the penalty, as a sound summary has them: as many as `top_k` or
  // the vocabulary, one where the temperature is 0.
  std::int32_t pick(std::span<const TopLogit> top, const SamplingOptions& options, double u);
  // What `pick` draws from at a temperature above 0: the tokens that pass top-k and top-p with probabilities that sum
  // to 1, in order of ids, in which u runs through them. Valid until the next call.
  std::span<const Candidate> distribution(std::span<const float> logits, const SamplingOptions& options,
                                          std::span<const std::int32_t> seen);

 private:
  std::span<const float> penalised(std::span<const float> logits, double penalty, std::span<const std::int32_t> seen);
  // Turns the logits in candidates_, in order of ids, into what `distribution` promises.
  std::span<const Candidate> weigh(const SamplingOptions& options, double largest);

  std::vector<float> logits_;
  std::vector<Candidate> candidates_, scratch_;
};

// Index of the largest logit; ties go to the lowest id. Throws like Sampler::pick.
std::int32_t pick_greedy(std::span<const float> logits);

// Natural log-softmax of `logits` at `token`, summed in float64 in order of ids. Throws like pick_greedy.
float log_probability(std::span<const float> logits, std::int32_t token);

}  // namespace stagecoach
