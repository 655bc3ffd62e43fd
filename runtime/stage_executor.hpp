// One stage's arithmetic: applies a microbatch's slot commands, runs its rows through the stage's blocks, and on the
// last stage picks tokens.
//
// Owns the stage's weights, KV cache and workspace on one backend. Does not know where input comes from or where output
// goes. The residual stream (rows, n_embd) is updated in place: it is what stages hand on.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/backend.hpp"
#include "partition/model.hpp"
#include "runtime/kv_cache.hpp"
#include "runtime/microbatch.hpp"
#include "runtime/slot_sampler.hpp"
#include "runtime/stage_weights.hpp"
#include "runtime/token_picker.hpp"

namespace stagecoach {

struct StageLimits {
  std::int32_t max_rows = 0;  // of one microbatch
  std::int32_t pages = 0;     // of the KV pool
  std::int32_t slots = 0;     // sequences at once
  DType kv_dtype = DType::kFloat32;
};

class StageExecutor {
 public:
  // `progress` is called between operations, so that the caller can keep messages moving.
  using Progress = TokenPicker::Progress;

  StageExecutor(Backend& backend, const ModelConfig& config, BlockRange blocks, StageWeights weights,
                const StageLimits& limits);
  ~StageExecutor();
  StageExecutor(const StageExecutor&) = delete;
  StageExecutor& operator=(const StageExecutor&) = delete;

  // `residual` is (microbatch.rows.size(), n_embd) float32 on the backend, in memory for max_rows of them, of which
  // those behind may be overwritten. The first stage overwrites it with embeddings, the others expect the previous
  // stage's. Returns the picked tokens and scores on the last stage, otherwise an empty batch. Operations on the
  // residual may still stand in the backend's queue when it returns.
  TokenBatch run(const Microbatch& microbatch, Tensor residual, const Progress& progress);

  // Logits (rows, vocab) of the last rows that the latest `run` picked tokens for, at most 64: for comparisons. Fetched
  // from the backend at the call.
  std::span<const float> last_logits();

  bool is_first() const { return blocks_.first == 0; }
  bool is_last() const { return blocks_.last == config_.n_layer - 1; }
  std::int32_t max_rows() const { return limits_.max_rows; }
  std::int64_t row_values() const { return config_.n_embd; }
  std::int64_t weight_bytes() const { return weights_.bytes; }
  std::int64_t kv_bytes() const { return cache_.bytes(); }

 private:
  void set_rows(const Microbatch& microbatch);
  void run_block(std::int32_t local_block, Tensor residual, const Progress& progress);
  TokenBatch pick_tokens(const Microbatch& microbatch, Tensor residual, const Progress& progress);

  Backend& backend_;
  ModelConfig config_;
  BlockRange blocks_;
  StageLimits limits_;
  StageWeights weights_;
  KvCache cache_;
  SlotSampler sampler_;  // used on the last stage
  Activation activation_;

  Buffer workspace_;
  Tensor narrow_;  // (max_rows, n_embd) of the activation dtype: normalised rows, attention's output
  Tensor wide_;    // (max_rows, max(3 * n_embd, n_inner)), likewise: q, k, v; the inner layer
  Tensor logits_;  // (head rows, vocab), last stage
  Tensor picked_;  // (head rows, n_embd), last stage
  TokenPicker picker_;

  // Host copies of the current rows, in the form that backends take.
  std::vector<std::int32_t> tokens_, positions_, sequences_, tables_;
  std::vector<Row> wanted_rows_;  // those whose tokens are picked next
  std::int64_t last_rows_ = 0;    // of logits_ that are filled
  std::vector<float> last_logits_;
};

}  // namespace stagecoach
