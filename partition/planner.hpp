// Decides who runs which blocks, in which chunks prompts travel, and says what that takes and gives: the byte model,
// balance, chunking and simulation put together.
//
// Plans are made for a job: so many sequences at once, each of so many positions. Knows devices as layouts, budgets and
// speeds.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "partition/balance.hpp"
#include "partition/simulation.hpp"

namespace stagecoach {

// Of one rank.
struct PlannerDevice {
  DeviceLayout layout;
  DeviceSpeed speed;
  LinkSpeed link;                            // to the next rank
  std::optional<std::int64_t> budget_bytes;  // nothing: no limit
  // What code, MPI and libraries take of it beside what we allocate; nothing of a device with memory of its own.
  std::int64_t process_bytes = 0;
};

struct PlanRequest {
  ModelConfig model;
  std::vector<PlannerDevice> devices;  // in order of ranks
  JobShape job;                        // its sequences run together, if they fit
  std::optional<std::int32_t> stages;  // nothing: as many as are best
  std::int32_t shards = 1;             // context shards of each stage, all like its device
  std::optional<std::vector<BlockRange>> cut;
  std::optional<ChunkPlan> chunks;  // nothing: planned, none longer than most_chunk
  std::int32_t most_chunk = 256;
  std::optional<std::int32_t> in_flight;  // nothing: one per stage
  bool hold_decode = false;               // as SimulatedPipeline's
};

struct PlannedStage {
  BlockRange blocks;
  std::int32_t device = 0;  // of the request
  StageBytes bytes;
  std::optional<std::int64_t> budget_bytes;
  double prompt_s = 0.0;  // of the longest chunk, at the end of the prompt
  double decode_s = 0.0;  // of one step of its share of the sequences, at the last position
  std::int64_t process_bytes = 0;

  std::int64_t needed_bytes() const { return bytes.device() + process_bytes; }
  bool fits() const { return !budget_bytes || needed_bytes() <= *budget_bytes; }
};

struct PipelinePlan {
  std::vector<PlannedStage> stages;
  ChunkPlan chunks;
  std::int32_t in_flight = 1;
  std::int32_t slots = 1;
  std::int64_t pages = 0;      // of each shard
  SimulatedPipeline pipeline;  // for other jobs
  Prediction prediction;
  double uniform_ttft_s = 0.0;  // with the best equal chunks instead; 0 unless chunks were planned
  ChunkPlan uniform_chunks;

  bool fits() const;
};

// The best that was found; when nothing fits, one that comes near, with fits() false. Throws PlanError when there are
// fewer blocks than stages, or the cut is none.
PipelinePlan make_plan(const PlanRequest& request);

// Whether any plan fits, which is found out sooner.
bool can_fit(const PlanRequest& request);

// Other ways to spend the devices, and what they would give: for `--stages auto`.
struct Alternative {
  std::int32_t stages = 0;
  std::int32_t replicas = 1;  // pipelines that share the sequences
  std::int32_t shards = 1;    // of each stage
  bool fits = false;
  double total_s = 0.0;
  double ttft_s = 0.0;
};
std::vector<Alternative> alternatives(const PlanRequest& request);

// The most positions of each of `sequences`, up to the model's, that a plan's stages have room for; 0 when not even one
// has. And the most sequences of `positions`.
std::int64_t most_positions(const PlanRequest& request, const PipelinePlan& plan, std::int64_t sequences);
std::int64_t most_sequences(const PlanRequest& request, const PipelinePlan& plan, std::int64_t positions);

// The plan's byte model for other numbers of pages, at most `in_flight` and chunks as planned.
std::vector<StageBytes> plan_bytes(const PlanRequest& request, const PipelinePlan& plan, std::int64_t pages,
                                   std::int64_t slots);

}  // namespace stagecoach
