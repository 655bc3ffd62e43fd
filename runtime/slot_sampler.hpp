// What the last stage remembers of every slot in order to pick its tokens: how to sample, and, where the repetition
// penalty needs them, which tokens were fed. Driven by the same slot commands as the KV cache; knows no tensors.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "runtime/microbatch.hpp"
#include "runtime/sampler.hpp"

namespace stagecoach {

class SlotSampler {
 public:
  SlotSampler(std::int32_t slots, std::int32_t vocab_size);

  // Both throw WireError when a slot or token is out of range. First the commands, then the rows of a microbatch.
  void apply(std::span<const SlotCommand> commands);
  void feed(std::span<const Row> rows);
  // The answer to a row that wants its logits. To be called in the order of the rows, after `feed` of all of them: a
  // slot has at most one row to sample per microbatch, its last.
  PickedToken pick(const Row& row, std::span<const float> logits);
  // The same from a summary: what to ask of the row's logits, or nothing where only all of them will do (an open top-k
  // over a large vocabulary), valid until the next `apply` or `feed`; and the answer to the row from a sound summary.
  // Tokens are those that all logits give, log-probabilities differ by the rounding of a sum to float32.
  std::optional<LogitsQuery> query(const Row& row);
  PickedToken pick(const Row& row, const LogitsSummary& summary);

 private:
  struct Slot {
    SlotSampling sampling;
    std::vector<std::int32_t> distinct;  // tokens fed so far, each once; empty without a penalty
    std::vector<bool> seen;              // [token]
    bool remembers() const { return sampling.options.repetition_penalty != 1.0; }
  };
  Slot& at(std::int32_t slot);
  void check_token(std::int32_t token) const;
  std::int32_t top_needed(const SamplingOptions& options) const;

  std::int32_t vocab_size_;
  std::vector<Slot> slots_;
  Sampler sampler_;
};

}  // namespace stagecoach
