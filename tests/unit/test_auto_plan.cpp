// What the partitioner decides where the user says nothing: better than the even split, within memory, and the same on
// every rank.
#include <doctest/doctest.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "launch/auto_plan.hpp"
#include "launch/device_speeds.hpp"
#include "launch/world.hpp"
#include "partition/simulation.hpp"

using namespace stagecoach;

namespace {

constexpr std::int64_t kGiB = std::int64_t{1} << 30;
constexpr OpenChoices kAll{true, true, std::nullopt};

ModelConfig xl() {
  ModelConfig model;
  model.n_layer = 48;
  model.n_head = 25;
  model.n_embd = 1600;
  model.n_inner = 6400;
  model.n_positions = 1024;
  return model;
}

FitRequest job(std::int32_t stages, std::int64_t sequences, std::int64_t prompt_tokens, std::int64_t new_tokens) {
  FitRequest request;
  request.plan.model = xl();
  request.plan.stages = even_split(request.plan.model, stages);
  request.plan.in_flight = stages;
  request.dtype = DType::kFloat16;
  request.kv_dtype = DType::kFloat16;
  request.work.sequences = sequences;
  request.work.prompt_tokens = sequences * prompt_tokens;
  request.work.new_tokens = sequences * new_tokens;
  request.work.pages = static_cast<std::int32_t>((prompt_tokens + new_tokens + 63) / 64);
  request.most_slots = static_cast<std::int32_t>(std::min<std::int64_t>(sequences, std::int64_t{32} * stages));
  request.chunks_may_shrink = true;
  for (std::int32_t s = 0; s < stages; ++s) {
    StageRoom room;
    room.available_bytes = 64 * kGiB;
    room.pot = s;
    request.rooms.push_back(room);
  }
  return request;
}

// Seconds of the slowest stage for one decode step of 8 sequences.
double slowest_step(const Plan& plan) {
  const DeviceSpeed speed = device_speed(std::nullopt, 0, false, DType::kFloat16, DType::kFloat16);
  double slowest = 0.0;
  for (const StageSpec& stage : plan.stages) {
    slowest = std::max(slowest, stage_seconds(plan.model, stage.blocks, speed, decode_step(8, 500)));
  }
  return slowest;
}

std::vector<std::int32_t> blocks_of(const Plan& plan) {
  std::vector<std::int32_t> counts;
  for (const StageSpec& stage : plan.stages) counts.push_back(stage.blocks.count());
  return counts;
}

}  // namespace

TEST_CASE("the LM head weighs as blocks do, so the last stage gets fewer of them") {
  for (const std::int32_t stages : {2, 4, 8}) {
    const FitRequest request = job(stages, 8 * stages, 64, 200);
    const Plan plan = choose(request, {true, false, std::nullopt});
    validate(plan);
    REQUIRE(plan.stage_count() == stages);
    CHECK(blocks_of(plan).back() < blocks_of(plan).front());
    CHECK(slowest_step(plan) < slowest_step(request.plan));
    CHECK(plan.chunk_tokens == request.plan.chunk_tokens);
    CHECK(plan.chunks.empty());
  }
}

TEST_CASE("scored prompts need the LM head for every token, other prompts for one") {
  FitRequest request = job(4, 16, 900, 1);
  const Plan prompts = choose(request, {true, false, std::nullopt});
  request.work.scored = true;
  const Plan scored = choose(request, {true, false, std::nullopt});
  CHECK(blocks_of(scored).back() < blocks_of(prompts).back());
}

TEST_CASE("a faster device gets more blocks") {
  const FitRequest request = job(2, 8, 64, 100);
  OpenChoices open{true, false,
                   parse_machine("devices:\n  - {bandwidth_gb_s: 10, compute_gflop_s: 100}\n"
                                 "  - {bandwidth_gb_s: 30, compute_gflop_s: 300}\n",
                                 "m.yaml")};
  const std::vector<std::int32_t> blocks = blocks_of(choose(request, open));
  CHECK(blocks[1] > 2 * blocks[0]);
}

TEST_CASE("memory comes before speed, and where nothing fits the plan stays as it was") {
  FitRequest request = job(2, 4, 64, 100);
  request.rooms[1].available_bytes = kGiB;  // the other one has to take most blocks
  const Plan plan = choose(request, kAll);
  CHECK(blocks_of(plan)[0] > 30);
  request.plan = plan;
  CHECK_NOTHROW(fit(request));
  request.rooms[0].available_bytes = kGiB;
  request.plan.stages = even_split(request.plan.model, 2);
  CHECK(blocks_of(choose(request, {true, false, std::nullopt})) == std::vector<std::int32_t>{24, 24});
}

TEST_CASE("one prompt alone travels in chunks that keep all stages busy") {
  const FitRequest request = job(4, 1, 900, 10);
  const Plan plan = choose(request, kAll);
  validate(plan);
  REQUIRE_FALSE(plan.chunks.empty());
  CHECK(longest_chunk(plan.chunks) == plan.chunk_tokens);
  CHECK(plan.chunk_tokens <= 900 / 4);
  SimulatedPipeline pipeline{plan.model, {}, plan.chunks, 4, 1, false};
  for (const StageSpec& stage : plan.stages) {
    pipeline.stages.push_back(
        {stage.blocks, device_speed(std::nullopt, 0, false, DType::kFloat16, DType::kFloat16), {}});
  }
  const double planned_s = simulate_ttft(pipeline, 900);
  pipeline.chunks = {request.plan.chunk_tokens};
  CHECK(planned_s < 0.8 * simulate_ttft(pipeline, 900));
}

TEST_CASE("what rank 0 chose, others take over") {
  Plan plan = job(3, 1, 900, 10).plan;
  plan.stages[0].blocks = {0, 20};
  plan.stages[1].blocks = {21, 30};
  plan.stages[2].blocks = {31, 47};
  plan.chunks = {200, 100, 50};
  plan.chunk_tokens = 200;
  Plan other = job(3, 1, 900, 10).plan;
  apply_choices(choices_of(plan), other);
  CHECK(blocks_of(other) == blocks_of(plan));
  CHECK(other.stages[1].blocks.first == 21);
  CHECK(other.chunks == plan.chunks);
  CHECK(other.chunk_tokens == 200);
  plan.chunks.clear();
  apply_choices(choices_of(plan), other);
  CHECK(other.chunks.empty());
}
