// One stage's arithmetic: applies a microbatch's slot commands, runs its rows through the stage's blocks, and on the
// last stage picks tokens.
//
// Owns the stage's weights, KV cache and workspace on one backend. Does not know where input comes from or where output
// goes. The residual stream (rows, n_embd) is updated in place: it is what stages hand on. As one of several context
// shards it runs its own part of the rows, and sees the others only in attention.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/backend.hpp"
#include "partition/model.hpp"
#include "runtime/kv_cache.hpp"
#include "runtime/microbatch.hpp"
#include "runtime/sharded_attention.hpp"
#include "runtime/slot_sampler.hpp"
#include "runtime/stage_weights.hpp"
#include "runtime/token_picker.hpp"

namespace stagecoach {

struct StageLimits {
  std::int32_t max_rows = 0;  // of one microbatch
  std::int32_t pages = 0;     // of the KV pool, of each context shard
  std::int32_t slots = 0;     // sequences at once
  DType kv_dtype = DType::kFloat32;
};

class StageExecutor {
 public:
  // `progress` is called between operations, so that the caller can keep messages moving.
  using Progress = TokenPicker::Progress;
  using Waiting = ShardedAttention::Waiting;

  // `links`, which must outlive it: of a context shard.
  StageExecutor(Backend& backend, const ModelConfig& config, BlockRange blocks, StageWeights weights,
                const StageLimits& limits, const ShardLinks* links = nullptr);
  ~StageExecutor();
  StageExecutor(const StageExecutor&) = delete;
  StageExecutor& operator=(const StageExecutor&) = delete;

  // `residual` is (own_rows(microbatch), n_embd) float32 on the backend, in memory for max_rows of them, of which
  // those behind may be overwritten. The first stage overwrites it with embeddings, the others expect the previous
  // stage's. Returns the picked tokens and scores of these rows on the last stage, otherwise an empty batch. Operations
  // on the residual may still stand in the backend's queue when it returns. `waiting` is for a context shard. Throws
  // std::runtime_error when the weights lie in a mapped file that has changed.
  TokenBatch run(const Microbatch& microbatch, Tensor residual, const Progress& progress, const Waiting& waiting = {});

  // Rows of a microbatch that this shard runs; all where there is one.
  std::int64_t own_rows(const Microbatch& microbatch) const;

  // Logits (rows, vocab) of the last rows that the latest `run` picked tokens for, at most 64: for comparisons. Fetched
  // from the backend at the call.
  std::span<const float> last_logits();

  bool is_first() const { return blocks_.first == 0; }
  bool is_last() const { return blocks_.last == config_.n_layer - 1; }
  std::int64_t max_rows() const { return largest_part(limits_.max_rows, place_.shards); }
  std::int64_t row_values() const { return config_.n_embd; }
  std::int64_t weight_bytes() const { return weights_.bytes; }
  std::int64_t kv_bytes() const { return cache_.bytes(); }
  std::int64_t shard_bytes_sent() const { return sharded_ ? sharded_->bytes_sent() : 0; }

 private:
  void read_rows(const Microbatch& microbatch);
  void set_rows(std::int64_t first, std::int64_t count);
  void run_all(Tensor residual, const Progress& progress);
  void run_sharded(Tensor residual, const Progress& progress, const Waiting& waiting);
  void check_weights() const;
  void run_block(std::int32_t local_block, Tensor residual, const Progress& progress, const Waiting& waiting);
  TokenBatch pick_tokens(const Microbatch& microbatch, Tensor residual, const Progress& progress);

  Backend& backend_;
  ModelConfig config_;
  BlockRange blocks_;
  StageLimits limits_;
  ShardPlace place_;
  StageWeights weights_;
  KvCache cache_;
  SlotSampler sampler_;  // used on the last stage
  Activation activation_;

  Buffer workspace_;
  Tensor narrow_;  // (max_rows, n_embd) of the activation dtype: normalised rows, attention's output
  Tensor wide_;    // (max_rows, max(3 * n_embd, n_inner)), likewise: q, k, v; the inner layer
  Tensor logits_;  // (head rows, vocab), last stage
  Tensor picked_;  // (head rows, n_embd), last stage
  std::unique_ptr<ShardedAttention> sharded_;  // of a context shard
  TokenPicker picker_;

  // Host copies of the current rows, of all shards, in the form that backends take.
  std::vector<std::int32_t> tokens_, positions_, sequences_, tables_;
  std::int64_t table_stride_ = 1;
  std::vector<std::span<const std::int32_t>> row_tables_;  // of each row, numbered over all shards; of a shard
  std::vector<Row> wanted_rows_;                           // those whose tokens are picked next
  std::int64_t last_rows_ = 0;                             // of logits_ that are filled
  std::vector<float> last_logits_;
};

}  // namespace stagecoach
