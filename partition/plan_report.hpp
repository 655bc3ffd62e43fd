// A plan for people and programs: text, JSON, a run file that runs it, a drawing.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "partition/planner.hpp"

namespace stagecoach {

struct PlanReport {
  std::string model;  // as given
  std::string dtype, kv_dtype;
  std::int64_t parameters = 0;
  std::int32_t replicas = 1;  // of the pipeline, which share the job's sequences; the request is of one
  PlanRequest request;
  PipelinePlan plan;
  std::vector<std::string> device_names;  // [stage]
  std::vector<std::string> hosts;         // [stage], as a run file named them; empty: any
  std::int64_t most_positions = 0;        // of each of the job's sequences
  std::int64_t most_sequences = 0;        // of the job's positions
  bool has_budgets = false;
  bool measured = false;                // speeds come from a machine file
  std::vector<Alternative> other_ways;  // for `--stages auto`
  std::vector<std::string> notes;       // sentences
  std::string machine_path;             // empty: none

  std::int64_t positions() const { return request.job.prompt_tokens + request.job.new_tokens - 1; }
};

std::string plan_text(const PlanReport& report);
std::string plan_json(const PlanReport& report);
// For --config of the commands that run it.
std::string plan_run_file(const PlanReport& report);
// Stages with their memory, and the first part of the simulated timeline.
std::string plan_svg(const PlanReport& report);

// "512, 448, 384 x 3".
std::string chunks_text(const ChunkPlan& chunks);

}  // namespace stagecoach
