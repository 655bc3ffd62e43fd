#include "launch/places.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "partition/placement.hpp"

namespace stagecoach {
namespace {

Grid find_grid(const Options& options, const World& world) {
  const auto& listed = options.run_file.stages;
  const std::int32_t stages = listed ? static_cast<std::int32_t>(listed->size()) : options.stages.value_or(0);
  try {
    return make_grid(world.size(), options.replicas, stages, options.context_shards);
  } catch (const PlanError& error) {
    const std::vector<std::string> hosts = world.hosts();
    if (std::ranges::count(hosts, hosts.front()) == std::ssize(hosts)) throw;
    throw PlanError(fmt::format("{} (there are {})", error.what(), ranks_by_host(hosts)));
  }
}

PlacementWish wish_of(const Options& options, const World& world, const Grid& grid) {
  PlacementWish wish;
  wish.hosts = world.hosts();
  wish.together = {grid.of_replica(), grid.shards};
  wish.one_process = world.size() == 1;
  if (wish.one_process) wish.hosts.assign(static_cast<std::size_t>(grid.size()), world.host());
  const auto& listed = options.run_file.stages;
  for (std::int32_t place = 0; listed && place < grid.size(); ++place) {
    const auto stage = static_cast<std::size_t>(grid.stage(place));
    wish.wanted.push_back((*listed)[stage].host);
    wish.where.push_back(options.run_file.stage_places[stage]);
  }
  return wish;
}

}  // namespace

void arrange_ranks(const Options& options, const World& world) {
  PlacementWish wish;
  try {
    wish = wish_of(options, world, find_grid(options, world));
  } catch (const PlanError&) {
  }
  world.arrange(wish);
}

std::int32_t most_crossings(const std::vector<std::string>& hosts, const Grid& grid) {
  std::int32_t most = 0;
  for (std::int32_t replica = 0; replica < grid.replicas; ++replica) {
    std::int32_t crossings = 0;
    for (std::int32_t stage = 1; stage < grid.stages; ++stage) {
      const auto place = static_cast<std::size_t>(grid.first(replica) + stage * grid.shards);
      crossings += hosts[place - static_cast<std::size_t>(grid.shards)] != hosts[place] ? 1 : 0;
    }
    most = std::max(most, crossings);
  }
  return most;
}

Grid settled_grid(const Options& options, const World& world) {
  const Grid grid = find_grid(options, world);
  place_ranks(wish_of(options, world, grid));  // by now as they are wanted, or it throws
  if (options.prompts_path == "-" && world.launched_rank(0) != 0) {
    throw UsageError(fmt::format(
        "--prompts -: standard input comes to rank 0, and the first stage is on host {}, which has others; name that "
        "host first (mpirun --host {}:1,...), or give a file",
        world.hosts().front(), world.hosts().front()));
  }
  return grid;
}

}  // namespace stagecoach
