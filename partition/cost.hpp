// What a stage costs: seconds for a microbatch on a device of known speed, and the floating-point operations and bytes
// behind them.
#pragma once

#include <cstdint>

#include "partition/device_speed.hpp"
#include "partition/stage_bytes.hpp"

namespace stagecoach {

// One microbatch, as far as time depends on it: a chunk of one prompt, steps of sequences that decode, or both.
struct MicrobatchWork {
  std::int64_t prompt_rows = 0;
  std::int64_t first_position = 0;  // of the chunk
  std::int64_t decode_rows = 0;
  std::int64_t decode_keys = 0;  // summed over them
  std::int64_t logits_rows = 0;  // rows whose logits are wanted

  std::int64_t rows() const { return prompt_rows + decode_rows; }
  // Row i of the chunk sees i + 1 keys beyond those before the chunk.
  double prompt_keys() const {
    const auto rows = static_cast<double>(prompt_rows);
    return rows * static_cast<double>(first_position) + rows * (rows + 1.0) / 2.0;
  }
};
MicrobatchWork prompt_chunk(std::int64_t first_position, std::int64_t rows);
MicrobatchWork decode_step(std::int64_t sequences, std::int64_t position);

// A stage whose prompts are shared by several context shards, and how they talk.
struct ShardCost {
  std::int32_t shards = 1;
  LinkSpeed link = {};
  std::int64_t segment_positions = 1024;  // that one shard has in a row
  std::int64_t activation_bytes = 4;
};
// What the shards of a stage send each other in one block for a microbatch, all together: q, k and v of each row to every
// other shard, and of each segment that another shard has than the row, n_embd + 2 * n_head float32.
double exchange_bytes(const ModelConfig& model, const MicrobatchWork& work, const ShardCost& shards);
// What it would be if, for a chunk of one prompt, keys and values went round a ring instead, in float32: each shard would
// need all that others have.
double ring_bytes(const ModelConfig& model, const MicrobatchWork& chunk, const ShardCost& shards);

// With shards, of the one that has most to do.
double stage_seconds(const ModelConfig& model, BlockRange blocks, const DeviceSpeed& speed, const MicrobatchWork& work,
                     const ShardCost& shards = {});
double link_seconds(const ModelConfig& model, const LinkSpeed& link, std::int64_t rows);

// What the arithmetic of a stage needs at least, whoever does it.
struct StageWorkload {
  double flops = 0.0;
  double bytes = 0.0;  // weights once, keys and values once for each sequence
};
StageWorkload stage_workload(const ModelConfig& model, BlockRange blocks, const DeviceLayout& layout,
                             const MicrobatchWork& work);

// Weights of the matrices of one block, and of the LM head.
std::int64_t block_matrix_elements(const ModelConfig& model);
std::int64_t head_elements(const ModelConfig& model);
// Keys and values of one token position in a stage's blocks.
double kv_bytes_per_token(BlockRange blocks, const DeviceLayout& layout);

}  // namespace stagecoach
