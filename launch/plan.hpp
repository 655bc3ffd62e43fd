// What a plan asks of the ranks that will run it, for those who ask a scheduler for them.
#pragma once

#include <cstdint>
#include <vector>

#include "launch/command_line.hpp"

namespace stagecoach {

struct PlannedRank {
  bool cuda = false;
  std::int64_t needed_bytes = 0;  // of the GPU's memory, where there is one
};

// By stage, from the model's header and the options of a run alone; for as many sequences of as many positions as
// `plan: {batch, context}` of the run file says. Throws FitError when budgets are too small.
std::vector<PlannedRank> planned_ranks(const Options& options);

}  // namespace stagecoach
