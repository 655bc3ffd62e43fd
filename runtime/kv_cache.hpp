// The KV pages of one stage's blocks and one page table per sequence slot: index arithmetic only.
//
// Slots and page numbers come from the scheduler in slot commands and are the same on every stage. The cache owns the
// pages (one pool per block, page p of every block belongs to the same positions); it must not outlive its backend. A
// context shard has the tables of all pages and the pages that are its own (context_shards.hpp).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/backend.hpp"
#include "runtime/context_shards.hpp"
#include "runtime/microbatch.hpp"

namespace stagecoach {

struct KvShape {
  std::int32_t blocks = 0;  // of this stage
  std::int32_t n_head = 0;
  std::int32_t head_dim = 0;
  DType dtype = DType::kFloat32;
  std::int32_t pages = 0;  // of this shard
  std::int32_t slots = 0;
  ShardPlace place = {};
};

constexpr std::int32_t pages_for(std::int64_t positions) {
  return static_cast<std::int32_t>((positions + kPagePositions - 1) / kPagePositions);
}

class KvCache {
 public:
  KvCache(Backend& backend, const KvShape& shape);

  // Applies the commands in order; copies pages on the backend. Throws WireError when a slot or page number is out of
  // range, or a fork does not find what it takes over.
  void apply(std::span<const SlotCommand> commands);
  // Pages of `slot`, in order of position.
  std::span<const std::int32_t> table(std::int32_t slot) const;
  KvPages pages(std::int32_t local_block) const;
  std::int64_t bytes() const;

 private:
  std::vector<std::int32_t>& at(std::int32_t slot);
  void require_page(std::int32_t page) const;
  void fork(const SlotCommand& command);
  void copy_page(const SlotCommand& command);

  Backend& backend_;
  KvShape shape_;
  std::vector<Buffer> pools_;                      // one per block
  std::vector<std::vector<std::int32_t>> tables_;  // [slot]
};

}  // namespace stagecoach
