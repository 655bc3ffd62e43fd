// How far the clocks of the ranks are apart.
#pragma once

#include <vector>

#include "launch/world.hpp"
#include "runtime/clock_offset.hpp"

namespace stagecoach {

// Rank 0: how far every rank's steady clock is ahead of its own, by rank; elsewhere nothing. Collective, takes a
// millisecond or so for each rank. A rank that does not answer ends the job after `timeout_s`.
std::vector<ClockOffset> compare_clocks(const World& world, double timeout_s);

}  // namespace stagecoach
