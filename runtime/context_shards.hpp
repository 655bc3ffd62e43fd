// How the ranks of one stage share a prompt: which pages and which rows are whose. Arithmetic only.
//
// A sequence's KV pages are dealt out segment by segment (kSegmentPages pages), from some shard on in turn, so that
// every shard has an equal part of what causal attention reads. Page numbers tell whose they are. The rows of a
// microbatch are cut into equal runs: a shard computes all but attention for its own.
#pragma once

#include <cstdint>

#include "kernels/backend.hpp"
#include "partition/shares.hpp"

namespace stagecoach {

struct ShardPlace {
  std::int32_t shard = 0;
  std::int32_t shards = 1;
};

constexpr std::int32_t shard_of_page(std::int32_t page, std::int32_t shards) {
  return page % shards;
}
// Number of the page in its shard's pool.
constexpr std::int32_t page_in_shard(std::int32_t page, std::int32_t shards) {
  return page / shards;
}

// Who has page `index` of a sequence whose first segment `first_shard` has.
constexpr std::int32_t shard_of_index(std::int32_t index, std::int32_t first_shard, std::int32_t shards) {
  return (first_shard + index / kSegmentPages) % shards;
}
// Of the first `count` pages of such a sequence, those of `shard`.
constexpr std::int32_t pages_of_shard(std::int32_t count, std::int32_t shard, std::int32_t first_shard,
                                      std::int32_t shards) {
  return static_cast<std::int32_t>(dealt_pages(count, (shard - first_shard + shards) % shards, shards, kSegmentPages));
}

// Rows of a microbatch of `rows` before those of `shard`.
constexpr std::int64_t rows_before(std::int64_t rows, std::int32_t shard, std::int32_t shards) {
  return rows * shard / shards;
}
constexpr std::int64_t own_rows(std::int64_t rows, ShardPlace place) {
  return rows_before(rows, place.shard + 1, place.shards) - rows_before(rows, place.shard, place.shards);
}

}  // namespace stagecoach
