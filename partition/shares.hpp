// How things are shared out among the context shards of a stage: rows in near-equal runs, pages segment by segment.
#pragma once

#include <algorithm>
#include <cstdint>

namespace stagecoach {

// The largest of `parts` near-equal parts of `n`.
constexpr std::int64_t largest_part(std::int64_t n, std::int64_t parts) {
  return (n + parts - 1) / parts;
}

// Of a sequence's first `count` pages, dealt out in runs of `segment_pages`, those of the shard that gets the runs
// `turn`, turn + shards, and so on; turn 0 gets most.
constexpr std::int64_t dealt_pages(std::int64_t count, std::int64_t turn, std::int64_t shards,
                                   std::int64_t segment_pages) {
  const std::int64_t round = segment_pages * shards;
  return count / round * segment_pages +
         std::clamp<std::int64_t>(count % round - turn * segment_pages, 0, segment_pages);
}

}  // namespace stagecoach
