// Attention of a stage whose prompts are shared by several context shards.
//
// Each shard has q, k and v of its own rows. It sends them to all others, appends those keys and values whose page is
// its own, and reduces for every row of the microbatch the segments that it has. Each row's parts go to the shard that
// has the row, which merges them in order: the same bits as on one rank (backend.hpp). While the parts of one shard's
// rows travel, those of the next are computed.
//
// Moved instead of queries and parts could be keys and values, round a ring. For a row and a block that would be
// 2 * n_embd values of every key elsewhere over the rows that share a chunk, against n_embd + 2 * n_head values of
// every segment elsewhere here: more, unless a shard has more than 2 * kSegmentPositions = 2048 rows of one microbatch.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "kernels/backend.hpp"
#include "partition/stage_bytes.hpp"
#include "runtime/context_shards.hpp"
#include "runtime/microbatch.hpp"
#include "runtime/transport.hpp"

namespace stagecoach {

// What one shard has to reach the others of its stage.
struct ShardLinks {
  ShardPlace place;
  std::vector<std::unique_ptr<Transport>> to;  // [shard], both ways; null for itself
};

struct ShardedShape {
  std::int32_t n_head = 0;
  std::int32_t head_dim = 0;
  DType activation = DType::kFloat32;
  ShardedWorkspace workspace = {};  // the most of everything
};

class ShardedAttention {
 public:
  using Progress = std::function<void()>;
  // Called again and again while something of that shard is awaited, or that it takes what was sent.
  using Waiting = std::function<void(std::int32_t shard)>;

  ShardedAttention(Backend& backend, const ShardLinks& links, const ShardedShape& shape);
  ~ShardedAttention();
  ShardedAttention(const ShardedAttention&) = delete;
  ShardedAttention& operator=(const ShardedAttention&) = delete;

  // The rows of a microbatch in order: positions, and for each the table of its sequence, numbered over all shards.
  void set_rows(std::span<const std::int32_t> positions, const std::vector<std::span<const std::int32_t>>& tables);
  // Where q, k and v of this shard's rows are to be.
  Tensor own_qkv() const;
  // One block: of this shard's rows, after set_rows of all rows on the backend.
  void run(const KvPages& kv, float scale, Tensor out, const Progress& progress, const Waiting& waiting);

  std::int64_t bytes_sent() const { return bytes_sent_; }

 private:
  struct Move {
    std::int32_t shard;
    Transport::Ticket ticket;
  };
  std::int32_t shards() const { return links_.place.shards; }
  std::int64_t first_row(std::int32_t shard) const { return rows_before(rows_, shard, shards()); }
  Tensor rows_of(std::int32_t shard) const;
  void send(std::int32_t shard, Tensor tensor);
  void receive(std::int32_t shard, Tensor tensor, std::vector<Move>& moves);
  void poll_sends();
  void settle(std::vector<Move>& moves, const Waiting& waiting);

  Backend& backend_;
  const ShardLinks& links_;
  ShardedShape shape_;
  Buffer memory_;
  Tensor qkv_;    // (rows, 3 * n_head * head_dim), of all shards
  Tensor parts_;  // (parts, part_width): this shard's, by whose row they are of; then those that others send
  std::int64_t rows_ = 0;
  std::vector<std::int64_t> ours_, theirs_;    // [shard] where parts of its rows, and from it, begin; and the end
  std::vector<std::int32_t> first_, numbers_;  // of the parts of this shard's rows: Backend::merge_parts
  std::vector<Move> sending_;
  std::int64_t bytes_sent_ = 0;
};

}  // namespace stagecoach
