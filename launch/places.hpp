// Which rank has which place: the grid that a run's options and ranks make, and who is where in it.
//
// All functions are collective or the same on every rank.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "launch/command_line.hpp"
#include "launch/world.hpp"
#include "partition/grid.hpp"

namespace stagecoach {

// Renumbers the ranks so that they are places: neighbours on one host as far as can be, stages where the run file wants
// them. Where that cannot be, nothing changes, and `settled_grid` says why: to be asked once the model is known, since
// mistakes in it and in the run file come first.
void arrange_ranks(const Options& options, const World& world);

// Links between hosts in a replica, of the one that has most: rows take their time on each, in which stages have others
// to compute.
std::int32_t most_crossings(const std::vector<std::string>& hosts, const Grid& grid);

// Throws PlanError or UsageError when ranks, their hosts and what is asked for do not go together.
Grid settled_grid(const Options& options, const World& world);

}  // namespace stagecoach
