#include "partition/grid.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "partition/model.hpp"

namespace stagecoach {

Grid make_grid(std::int32_t ranks, std::int32_t replicas, std::int32_t stages) {
  Grid grid{std::max(1, replicas), stages};
  if (ranks == 1) {
    grid.stages = std::max(1, stages);
    return grid;
  }
  if (stages == 0) {
    if (ranks % grid.replicas != 0) {
      throw PlanError(fmt::format("{} ranks are not {} replicas of as many stages each; start a multiple of {} ranks",
                                  ranks, grid.replicas, grid.replicas));
    }
    grid.stages = ranks / grid.replicas;
    return grid;
  }
  if (std::int64_t{grid.replicas} * stages == ranks) return grid;
  std::string ways = fmt::format("start {0} ranks (mpirun -n {0})", std::int64_t{grid.replicas} * stages);
  if (ranks % stages == 0) ways += fmt::format(", or give --replicas {}", ranks / stages);
  if (replicas > 1) {
    throw PlanError(fmt::format("{} ranks but {} replicas of {} stages; {}", ranks, replicas, stages, ways));
  }
  throw PlanError(fmt::format("{} ranks but {} stages; {}, or leave the stages out", ranks, stages, ways));
}

}  // namespace stagecoach
