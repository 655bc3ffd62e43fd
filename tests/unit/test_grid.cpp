// Places of ranks: every layout of replicas and stages, and what does not go.
#include <doctest/doctest.h>

#include <string>

#include "partition/grid.hpp"
#include "partition/model.hpp"

using namespace stagecoach;

namespace {

std::string error_of(std::int32_t ranks, std::int32_t replicas, std::int32_t stages, std::int32_t shards = 1) {
  try {
    make_grid(ranks, replicas, stages, shards);
  } catch (const PlanError& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace

TEST_CASE("replica, stage and shard of a place, and back") {
  for (std::int32_t n = 0; n < 64; ++n) {
    const std::int32_t replicas = 1 + n % 4, stages = 1 + n / 4 % 4, shards = 1 + n / 16;
    const std::int32_t ranks = replicas * stages * shards;
    const Grid grid = make_grid(ranks, replicas, ranks == 1 ? 1 : 0, shards);
    REQUIRE(grid.replicas == replicas);
    REQUIRE(grid.stages == stages);
    REQUIRE(grid.shards == shards);
    for (std::int32_t place = 0; place < ranks; ++place) {
      CHECK((grid.replica(place) * stages + grid.stage(place)) * shards + grid.shard(place) == place);
      CHECK(grid.stage(place) < stages);
      CHECK(grid.shard(place) < shards);
      CHECK(grid.leads(place) == (grid.stage(place) == 0 && grid.shard(place) == 0));
      if (grid.leads(place)) CHECK(grid.first(grid.replica(place)) == place);
    }
    CHECK(grid.size() == ranks);
  }
}

TEST_CASE("ranks that are no grid are refused with what would be one") {
  CHECK(error_of(4, 1, 2) ==
        "4 ranks but 2 stages; start 2 ranks (mpirun -n 2), or give --replicas 2, or leave the "
        "stages out");
  CHECK(error_of(3, 1, 2) == "3 ranks but 2 stages; start 2 ranks (mpirun -n 2), or leave the stages out");
  CHECK(error_of(6, 2, 2) == "6 ranks but 2 replicas of 2 stages; start 4 ranks (mpirun -n 4), or give --replicas 3");
  CHECK(error_of(3, 2, 0) == "3 ranks are not 2 replicas of as many stages each; start a multiple of 2 ranks");
  CHECK(error_of(3, 1, 0, 2) == "3 ranks are not stages of 2 context shards each; start a multiple of 2 ranks");
  CHECK(error_of(6, 2, 0, 2) ==
        "6 ranks are not 2 replicas of as many stages of 2 context shards each; start a multiple of 4 ranks");
  CHECK(error_of(8, 1, 2, 2) ==
        "8 ranks but 2 stages of 2 context shards; start 4 ranks (mpirun -n 4), or give --replicas 2, or leave the "
        "stages out");
  CHECK(error_of(2, 1 << 20, 1 << 20) ==
        "2 ranks but 1048576 replicas of 1048576 stages; start 1099511627776 ranks (mpirun -n 1099511627776)");
}

TEST_CASE("one process takes all places, or one") {
  CHECK(make_grid(1, 1, 0).size() == 1);
  CHECK(make_grid(1, 3, 0).size() == 3);
  CHECK(make_grid(1, 3, 2).size() == 6);
}
