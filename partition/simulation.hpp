// Simulates a pipeline at work: stages, links, prompt chunks and steps of decoding, as the leader and the scheduler of
// a run would order them. Predicts when the first token comes, how fast the others follow and how long each stage
// idles.
//
// Microbatches pass every stage in order, a stage runs one at a time, links carry what is sent while stages compute.
// All prompts are alike and there at the start, and every sequence gets as many new tokens.
#pragma once

#include <cstdint>
#include <vector>

#include "partition/chunking.hpp"
#include "partition/cost.hpp"

namespace stagecoach {

// What is to be done.
struct JobShape {
  std::int64_t prompt_tokens = 512;
  std::int64_t new_tokens = 64;
  std::int64_t sequences = 1;
  bool scored = false;  // logits of every prompt token are wanted, and no new tokens but one
};

struct SimulatedStage {
  BlockRange blocks;
  DeviceSpeed speed;
  LinkSpeed link;  // to the next stage; of the last one to the first, for tokens
  ShardCost shards = {};
};

struct SimulatedPipeline {
  ModelConfig model;
  std::vector<SimulatedStage> stages;
  ChunkPlan chunks;
  std::int32_t in_flight = 1;
  std::int64_t slots = 1;    // sequences at once
  bool hold_decode = false;  // no step of decoding before all prompts are in (benchmarks)
};

// When a stage worked at a microbatch.
struct Busy {
  std::int32_t stage = 0;
  std::int64_t microbatch = 0;
  double start_s = 0.0;
  double end_s = 0.0;
  bool prompt = false;  // has rows of a prompt
};

struct Prediction {
  double ttft_s = 0.0;  // of the first sequence
  double all_prefilled_s = 0.0;
  double total_s = 0.0;
  double prefill_tokens_per_s = 0.0;  // up to all_prefilled_s
  double decode_tokens_per_s = 0.0;   // from there on; 0 when nothing is left
  std::vector<double> busy_s;         // [stage]
  std::vector<double> bubble;         // [stage] share of total_s that it idles
  std::int64_t microbatches = 0;
  std::vector<Busy> timeline;  // the first `keep` of simulate
};

// `keep`: of the timeline, entries at most.
Prediction simulate(const SimulatedPipeline& pipeline, const JobShape& job, std::size_t keep = 0);

// The time to the first token alone, of one prompt in these chunks.
double simulate_ttft(const SimulatedPipeline& pipeline, std::int64_t prompt_tokens);

}  // namespace stagecoach
