// Who runs which blocks: the validated, immutable description of one pipeline.
//
// A Plan knows the model's dimensions, block ranges and the knobs of the pipeline; it knows no files, MPI or devices.
// World rank = ((replica * stages) + stage) * shards + shard.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "partition/chunking.hpp"
#include "partition/grid.hpp"
#include "partition/model.hpp"

namespace stagecoach {

// Where a stage computes, as "auto", "cpu", "cuda" or "cuda:N".
enum class DeviceKind : std::uint8_t { kAuto, kCpu, kCuda };
struct DeviceWish {
  DeviceKind kind = DeviceKind::kAuto;
  std::optional<std::int32_t> index;  // among the devices that the rank sees; without it any of its own
  bool operator==(const DeviceWish&) const = default;
};
// Nothing when `text` is no such name.
std::optional<DeviceWish> parse_device(std::string_view text);

struct StageSpec {
  BlockRange blocks;
  DeviceWish device;
  std::optional<std::int64_t> memory_bytes;  // budget of this stage's rank
  std::string host;                          // empty: any
};

struct Plan {
  ModelConfig model;
  std::vector<StageSpec> stages;
  std::int32_t chunk_tokens = 256;  // most prompt rows in one microbatch
  ChunkPlan chunks;                 // lengths by position, the longest chunk_tokens; empty: all that long
  std::int32_t in_flight = 1;       // microbatches in the pipeline at once, >= 1
  std::int32_t shards = 1;          // context shards of each stage, >= 1

  std::int32_t stage_count() const { return static_cast<std::int32_t>(stages.size()); }
  // Of as many replicas as there are places for.
  Grid grid(std::size_t places) const {
    return {static_cast<std::int32_t>(places) / (stage_count() * shards), stage_count(), shards};
  }
};

// `stages` near-equal contiguous ranges (sizes differ by at most one, larger ones first).
// Throws PlanError when there are more stages than blocks, or none.
std::vector<StageSpec> even_split(const ModelConfig& model, std::int32_t stages);

// Throws PlanError, naming the stage and blocks, unless the stages cover blocks 0..n_layer-1 in order without gap or
// overlap, chunk_tokens and in_flight are positive and chunk_tokens is the longest of chunks.
void validate(const Plan& plan);

}  // namespace stagecoach
