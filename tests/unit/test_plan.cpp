#include <doctest/doctest.h>

#include "partition/plan.hpp"

using namespace stagecoach;

namespace {

Plan plan_of(std::vector<BlockRange> ranges, std::int32_t n_layer) {
  Plan plan;
  plan.model.n_layer = n_layer;
  for (const BlockRange range : ranges) {
    StageSpec spec;
    spec.blocks = range;
    plan.stages.push_back(spec);
  }
  return plan;
}

}  // namespace

TEST_CASE("an even split covers every block once, sizes differ by at most one") {
  for (std::int32_t layers = 1; layers <= 50; ++layers) {
    for (std::int32_t stages = 1; stages <= layers; ++stages) {
      Plan plan;
      plan.model.n_layer = layers;
      plan.stages = even_split(plan.model, stages);
      CHECK_NOTHROW(validate(plan));
      CHECK(plan.stage_count() == stages);
      CHECK(plan.stages.front().blocks.count() - plan.stages.back().blocks.count() <= 1);
      CHECK(plan.stages.back().blocks.count() == layers / stages);
    }
  }
}

TEST_CASE("more stages than blocks, or none, is an error that says how many there may be") {
  ModelConfig model;
  CHECK_THROWS_WITH_AS(even_split(model, 13),
                       "13 stages but the model has only 12 blocks; use at most 12 stages (ranks)", PlanError);
  CHECK_THROWS_AS(even_split(model, 0), PlanError);
}

TEST_CASE("gaps, overlaps, wrong order and missing blocks are named") {
  CHECK_NOTHROW(validate(plan_of({{0, 3}, {4, 11}}, 12)));
  CHECK_THROWS_WITH_AS(validate(plan_of({{0, 3}, {5, 11}}, 12)),
                       "stage 1: blocks [5, 11]: leaves out blocks, the stage must begin with block 4", PlanError);
  CHECK_THROWS_WITH_AS(validate(plan_of({{0, 3}, {3, 11}}, 12)),
                       "stage 1: blocks [3, 11]: repeats blocks, the stage must begin with block 4", PlanError);
  CHECK_THROWS_AS(validate(plan_of({{0, 3}, {11, 4}}, 12)), PlanError);
  CHECK_THROWS_WITH_AS(validate(plan_of({{0, 3}, {4, 10}}, 12)),
                       "the stages end with block 10 but the model's last block is 11", PlanError);
  CHECK_THROWS_AS(validate(plan_of({{0, 12}}, 12)), PlanError);
  CHECK_THROWS_AS(validate(plan_of({{1, 11}}, 12)), PlanError);
  CHECK_THROWS_AS(validate(plan_of({}, 12)), PlanError);
  Plan plan = plan_of({{0, 11}}, 12);
  plan.chunk_tokens = 0;
  CHECK_THROWS_AS(validate(plan), PlanError);
  plan = plan_of({{0, 11}}, 12);
  plan.in_flight = 0;
  CHECK_THROWS_AS(validate(plan), PlanError);
}
