// What one stage allocates, to the byte: the one place for it. Whoever allocates takes sizes from here, plans and
// budgets are made of the same numbers, and tests compare them with what a backend has given out.
//
// Knows bytes without knowing devices: a DeviceLayout says how a kind of device lays out matrices and pages and what it
// takes for itself, for the dtypes of one run.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "partition/model.hpp"
#include "partition/shares.hpp"

namespace stagecoach {

// Arrays that share an allocation begin at multiples of 64 bytes.
constexpr std::int64_t aligned(std::int64_t bytes) {
  return (bytes + 63) / 64 * 64;
}

// Rows whose logits are computed at once: bounds the logits' memory, and is many enough for the matrix kernels.
inline constexpr std::int32_t kHeadRows = 64;

// The largest that the operations of a stage get to see.
struct StageOperations {
  std::int64_t rows = 0;
  std::int64_t columns = 0;      // of an input of a product
  std::int64_t table_words = 0;  // page numbers of one microbatch
  std::int64_t head_rows = 0;    // rows whose logits are computed at once; 0 but on the last stage
  std::int64_t parts = 0;        // of the rows of one context shard, made or merged at once; 0 without
};

struct DeviceLayout {
  std::function<std::int64_t(std::int64_t in, std::int64_t out)> matrix_bytes;
  std::function<std::int64_t(const StageOperations&)> own_bytes;  // what the device's backend takes for itself
  std::int64_t kv_page_bytes = 0;                                 // of one block
  std::int64_t page_positions = 64;
  std::int64_t segment_pages = 16;    // that attention reduces by themselves
  std::int64_t activation_bytes = 4;  // an element between the operations of a block, and of the biases added there
  std::int64_t table_bytes = 4;       // an element of the position embedding
  std::int64_t unit_bytes = 1;        // allocations count as multiples of this
  std::int64_t summary_bytes = 0;     // of one row of logits; 0 where the host reads logits themselves
  bool in_host_memory = true;
};

// What the run allows at once.
struct StageWork {
  std::int32_t max_rows = 0;  // of one microbatch
  std::int32_t pages = 0;     // of the KV pool of one shard
  std::int32_t slots = 0;     // sequences, those that only hold shared prompts included
  std::int32_t in_flight = 1;
  std::int32_t stages = 1;
  std::int32_t shards = 1;  // context shards, of which each has as many pages and an equal part of the rows

  std::int64_t own_rows() const { return largest_part(max_rows, shards); }
};

struct StageBytes {
  std::int64_t weights = 0;
  std::int64_t kv = 0;
  std::int64_t workspace = 0;  // activations between operations, logits
  std::int64_t residuals = 0;  // what comes from and goes to other stages
  std::int64_t scratch = 0;    // the backend's own
  std::int64_t host = 0;       // beside a device with memory of its own: what passes through the host's

  // On the device, all that its backend gives out.
  std::int64_t device() const { return weights + kv + workspace + residuals + scratch; }
  std::int64_t total() const { return device() + host; }
  StageBytes& operator+=(const StageBytes& other);
};

StageBytes stage_bytes(const ModelConfig& model, BlockRange blocks, const DeviceLayout& layout, const StageWork& work);

// The largest number from `low` to `high` that `fits`, which must not become true again once it is false; low - 1 when
// none does.
template <typename Fits>
std::int64_t largest_that_fits(std::int64_t low, std::int64_t high, const Fits& fits) {
  std::int64_t good = low - 1;
  while (good < high) {
    const std::int64_t middle = good + (high - good + 1) / 2;
    if (fits(middle)) {
      good = middle;
    } else {
      high = middle - 1;
    }
  }
  return good;
}

// Parts of it. Tensors as `stage_tensors` lists them.
std::int64_t tensor_bytes(const TensorSpec& tensor, const DeviceLayout& layout);
std::int64_t stage_weight_bytes(const ModelConfig& model, BlockRange blocks, const DeviceLayout& layout);
// Bytes of one KV page of all blocks of a stage, as long as that many pages are made at once.
std::int64_t stage_page_bytes(BlockRange blocks, const DeviceLayout& layout);
StageOperations stage_operations(const ModelConfig& model, BlockRange blocks, const DeviceLayout& layout,
                                 const StageWork& work);

// A matrix as products see it: inputs and outputs. The embedding and the LM head are stored (outputs, inputs).
struct MatrixShape {
  std::int64_t in = 0;
  std::int64_t out = 0;
};
// Whether a tensor is multiplied with: all but vectors and the position embedding, which is read row by row.
bool is_matrix(const TensorSpec& tensor);
MatrixShape matrix_shape(const TensorSpec& matrix);

// The arrays of a stage's workspace, in order; they share one allocation.
struct Workspace {
  std::int64_t rows = 0, narrow = 0, wide = 0;  // (rows, narrow) and (rows, wide) of the activation dtype; own rows
  std::int64_t head_rows = 0, vocab = 0;        // (head_rows, vocab) and (head_rows, narrow), float32
  std::int64_t bytes(std::int64_t activation_bytes) const;
};
Workspace stage_workspace(const ModelConfig& model, BlockRange blocks, const StageWork& work);

// What context shards need for attention, in one allocation; nothing without.
struct ShardedWorkspace {
  std::int64_t rows = 0, qkv = 0;           // (rows, qkv) of the activation dtype: q, k and v of all shards' rows
  std::int64_t parts = 0, part_values = 0;  // (parts, part_values), float32: one for a row, a block and a segment
  std::int64_t own_rows = 0, own_parts = 0;  // of these, most that travel between two shards at once, each way
  std::int64_t merged_parts = 0;             // most that one shard's rows have
  std::int64_t bytes(std::int64_t activation_bytes) const;
  std::int64_t exchanged_bytes(std::int64_t activation_bytes) const;  // both ways
};
ShardedWorkspace sharded_workspace(const ModelConfig& model, const DeviceLayout& layout, const StageWork& work);

// Buffers for the rows of microbatches: one more than can be in flight, so that one always comes free.
constexpr std::int64_t residual_buffers(std::int32_t in_flight) {
  return in_flight + 1LL;
}
constexpr std::int64_t residual_bytes(std::int64_t rows, std::int64_t n_embd) {
  return rows * n_embd * 4;
}

}  // namespace stagecoach
