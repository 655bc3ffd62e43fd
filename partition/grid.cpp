#include "partition/grid.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "partition/model.hpp"

namespace stagecoach {

Grid make_grid(std::int32_t ranks, std::int32_t replicas, std::int32_t stages, std::int32_t shards) {
  Grid grid{std::max(1, replicas), stages, std::max(1, shards)};
  if (ranks == 1) {
    grid.stages = std::max(1, stages);
    return grid;
  }
  const std::string of_shards = grid.shards > 1 ? fmt::format(" of {} context shards", grid.shards) : "";
  const std::int64_t of_each = std::int64_t{grid.replicas} * grid.shards;  // ranks for one stage of each replica
  if (stages == 0) {
    if (ranks % of_each == 0) {
      grid.stages = static_cast<std::int32_t>(ranks / of_each);
      return grid;
    }
    if (grid.replicas == 1) {
      throw PlanError(
          fmt::format("{} ranks are not stages{} each; start a multiple of {} ranks", ranks, of_shards, of_each));
    }
    throw PlanError(fmt::format("{} ranks are not {} replicas of as many stages{} each; start a multiple of {} ranks",
                                ranks, grid.replicas, of_shards, of_each));
  }
  const std::int64_t of_replica = std::int64_t{stages} * grid.shards;
  if (of_each * stages == ranks) return grid;
  std::string ways = fmt::format("start {0} ranks (mpirun -n {0})", of_each * stages);
  if (ranks % of_replica == 0) ways += fmt::format(", or give --replicas {}", ranks / of_replica);
  if (replicas > 1) {
    throw PlanError(
        fmt::format("{} ranks but {} replicas of {} stages{}; {}", ranks, replicas, stages, of_shards, ways));
  }
  throw PlanError(fmt::format("{} ranks but {} stages{}; {}, or leave the stages out", ranks, stages, of_shards, ways));
}

}  // namespace stagecoach
