// What the user left open about a run, decided by the partitioner: which blocks each stage has, and in which chunks
// prompts travel.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "launch/fit.hpp"
#include "partition/machine.hpp"

namespace stagecoach {

struct OpenChoices {
  bool blocks = false;  // of as many stages as the plan has
  bool chunks = false;  // none longer than the plan's chunk_tokens
  std::optional<Machine> machine;
};

// What `choose` may change of a plan, for other ranks: they must not decide by themselves, since their processors may
// round otherwise.
std::vector<std::int32_t> choices_of(const Plan& plan);
void apply_choices(std::span<const std::int32_t> choices, Plan& plan);

// The plan of `request` with those choices made. One that fits if any was found; whether it does is for `fit` to say.
Plan choose(const FitRequest& request, const OpenChoices& open);

}  // namespace stagecoach
