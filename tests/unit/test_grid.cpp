// Places of ranks: every layout of replicas and stages, and what does not go.
#include <doctest/doctest.h>

#include <string>

#include "partition/grid.hpp"
#include "partition/model.hpp"

using namespace stagecoach;

namespace {

std::string error_of(std::int32_t ranks, std::int32_t replicas, std::int32_t stages) {
  try {
    make_grid(ranks, replicas, stages);
  } catch (const PlanError& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace

TEST_CASE("replica and stage of a place, and back") {
  for (std::int32_t replicas = 1; replicas <= 4; ++replicas) {
    for (std::int32_t stages = 1; stages <= 4; ++stages) {
      const Grid grid = make_grid(replicas * stages, replicas, replicas * stages == 1 ? 1 : 0);
      REQUIRE(grid.replicas == replicas);
      REQUIRE(grid.stages == stages);
      std::int32_t place = 0;
      for (std::int32_t replica = 0; replica < replicas; ++replica) {
        CHECK(grid.first(replica) == place);
        for (std::int32_t stage = 0; stage < stages; ++stage, ++place) {
          CHECK(grid.replica(place) == replica);
          CHECK(grid.stage(place) == stage);
          CHECK(grid.leads(place) == (stage == 0));
        }
      }
      CHECK(grid.size() == place);
    }
  }
}

TEST_CASE("ranks that are no grid are refused with what would be one") {
  CHECK(error_of(4, 1, 2) ==
        "4 ranks but 2 stages; start 2 ranks (mpirun -n 2), or give --replicas 2, or leave the "
        "stages out");
  CHECK(error_of(3, 1, 2) == "3 ranks but 2 stages; start 2 ranks (mpirun -n 2), or leave the stages out");
  CHECK(error_of(6, 2, 2) == "6 ranks but 2 replicas of 2 stages; start 4 ranks (mpirun -n 4), or give --replicas 3");
  CHECK(error_of(3, 2, 0) == "3 ranks are not 2 replicas of as many stages each; start a multiple of 2 ranks");
  CHECK(error_of(2, 1 << 20, 1 << 20) ==
        "2 ranks but 1048576 replicas of 1048576 stages; start 1099511627776 ranks (mpirun -n 1099511627776)");
}

TEST_CASE("one process takes all places, or one") {
  CHECK(make_grid(1, 1, 0).size() == 1);
  CHECK(make_grid(1, 3, 0).size() == 3);
  CHECK(make_grid(1, 3, 2).size() == 6);
}
