// Whether a run fits into the memory that its stages may take: how many sequences and KV pages it can have there, and
// what to say when it does not fit.
//
// Pure arithmetic on what the ranks have told each other, so that all of them come to the same numbers, or fail with
// the same words.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/memory_layout.hpp"
#include "kernels/tensor.hpp"
#include "partition/plan.hpp"
#include "partition/stage_bytes.hpp"

namespace stagecoach {

// How much must fit at once; only rank 0's answer counts.
struct WorkSize {
  std::int64_t sequences = 1;     // that could run together
  std::int32_t pages = 1;         // KV pages that the largest request needs, of each context shard
  std::int64_t all_pages = 0;     // that all sequences together need at most; 0: as many as there are
  std::int64_t prompt_bytes = 0;  // of rank 0's memory, for prompts and results
  bool remembers_tokens = false;  // some request has a repetition penalty
  // For the partitioner, over all sequences:
  std::int64_t prompt_tokens = 0;
  std::int64_t new_tokens = 0;  // at most
  bool scored = false;          // prompts are scored
};

// What one stage has; ranks tell each other theirs.
struct StageRoom {
  std::int64_t available_bytes = 0;  // that it may take, with its process
  std::int64_t process_bytes = 0;    // of these, what is not for the buffers of its backend
  std::int64_t budget_bytes = 0;     // that the user gave, perhaps more than the host has; 0: none
  std::int64_t pool_bytes = 0;       // of a GPU; then this is what is available
  std::int32_t threads = 1;
  std::int32_t pot = 0;  // stages of one pot share what is available to any of them
  bool cuda = false;
};

// What a stage is going to take.
struct StageNeed {
  StageBytes bytes;
  std::int64_t process = 0;
  std::int64_t loading = 0;  // while weights are read, beside them and before there is a KV cache

  std::int64_t buffers() const { return std::max(bytes.device(), bytes.weights + bytes.scratch + loading); }
  std::int64_t total() const { return buffers() + process; }
};

struct FitRequest {
  Plan plan;
  DType dtype = DType::kFloat32;
  DType kv_dtype = DType::kFloat32;
  WorkSize work;
  std::int32_t most_slots = 1;     // sequences at once, if there is room
  bool chunks_may_shrink = false;  // plan.chunk_tokens is only what would be best
  std::vector<StageRoom> rooms;    // by place (grid.hpp): as many replicas as there are rooms for
  std::vector<std::string> hosts;  // by place, for messages; none where all are one
  // Host memory that reading a stage's weights as `dtype` takes beside them.
  std::function<std::int64_t(BlockRange blocks, DType dtype, const MemoryLayout& layout)> loading_bytes;
};

struct Fit {
  std::int32_t slots = 0;
  std::int32_t pages = 0;  // of each context shard
  std::int32_t chunk_tokens = 0;
  std::vector<StageNeed> needs;  // by place
};

std::unique_ptr<MemoryLayout> layout_of(const StageRoom& room);

// As many sequences and pages as there is room for, at least one of the largest request. Throws FitError, which tells
// what every stage that is too small needs and has, and which changes would make the run fit.
Fit fit(const FitRequest& request);

// `free_bytes` for those who share them: who has a wish gets it, or in proportion when all wishes together are more
// than is free; the others share `share` of what is left equally.
std::vector<std::int64_t> divide(std::int64_t free_bytes, double share,
                                 std::span<const std::optional<std::int64_t>> wishes);

// "3.1 GiB (weights 1.0 GiB, KV cache 2.0 GiB, workspace 80.0 MiB, process 60.0 MiB)".
std::string describe(const StageNeed& need);

}  // namespace stagecoach
