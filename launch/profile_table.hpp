// A stage's profile as text for people: one table per phase, the slowest operations first.
//
// A share is of the time from the first to the last operation of microbatches; what lies before them is named under the
// table. GB/s and GFLOP/s are of what operations need at least (kernels/profiling.hpp).
#pragma once

#include <string>

#include "kernels/profiling.hpp"
#include "partition/model.hpp"

namespace stagecoach {

// Phases without microbatches are left out.
std::string profile_table(const Profile& profile, std::int32_t stage, BlockRange blocks);

}  // namespace stagecoach
