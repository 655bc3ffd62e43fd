// Which blocks of the attention kernels do what, decided on the host once per set_rows: pure arithmetic on positions,
// without CUDA.
//
// Rows of a sequence are cut into items. An item of many rows (a tile) shares the reads of its keys and values; an item
// of one row (a single) is a step of decoding. One block per head works on an item. Where there are too few items to
// fill the device, their keys are split: each part goes to a block of its own, which leaves a partial result
// (largest score, sum, weighted values) per row and head; a combining kernel then merges a row's parts in order.
// A result is one of a row over all its keys, or, for attention in parts, of a row over the keys of one segment.
//
// Deterministic plans give each row the same bits whatever the chunking and the companions: parts begin at multiples of
// kFixedSplitPages pages, every part is reduced from an empty state, the parts of a segment are merged in order and
// then the segments in order, by the block itself or by other kernels with the same operations. The cost: the tile
// kernel serves single rows too, and one sequence of n positions fills at most n / 256 blocks per head, so that
// decoding of few short sequences leaves part of the device idle.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/row_set.hpp"

namespace stagecoach::cuda {

inline constexpr std::int32_t kTileRows = 64;
inline constexpr std::int32_t kFixedSplitPages = 4;
static_assert(kSegmentPages % kFixedSplitPages == 0);

// Words of the plan as the kernels read them.
struct AttentionItem {
  std::int32_t first_row;
  std::int32_t rows;  // 0: nothing to do
  std::int32_t sequence;
  std::int32_t first_page;  // of the sequence: the keys of pages [first_page, end_page)
  std::int32_t end_page;
  std::int32_t last_position;  // of the item's last row
  std::int32_t partial;        // index of the first row's partial result; -1: the block writes the results itself
  std::int32_t first_number;   // the number of its first page, which so need not be looked up
  std::int32_t result;         // index of the first row's result
  std::int32_t result_stride;  // from one row's result to the next one's
};
struct AttentionCombine {
  std::int32_t result;
  std::int32_t first_partial;
  std::int32_t parts;   // 0: nothing to do
  std::int32_t stride;  // from one part's partial result to the next one's
};

class AttentionPlan {
 public:
  // Blocks per head of each launch. Counts are rounded up with empty items, so that the plans of successive steps
  // mostly have equal shapes: a graph captured with one plan serves every plan of the same shape and determinism for
  // the same number of (padded) device rows, after its words are uploaded to the same place.
  struct Shape {
    std::int32_t tiles = 0;
    std::int32_t singles = 0;
    std::int32_t combines = 0;
    bool operator==(const Shape&) const = default;
  };

  // `multiprocessors` and `n_head` decide how many parts fill the device; a plan is right for any number of heads.
  void assign(const RowSet& rows, bool deterministic, int multiprocessors, std::int32_t n_head);
  // For the parts (backend.hpp) of `count` rows from `first` on: each is a result.
  void assign_parts(const RowSet& rows, std::int64_t first, std::int64_t count, bool deterministic, int multiprocessors,
                    std::int32_t n_head);

  const Shape& shape() const { return shape_; }
  bool deterministic() const { return deterministic_; }
  std::int64_t rows() const { return rows_; }        // so many are attended for
  std::int64_t results() const { return results_; }  // so many are written
  bool in_parts() const { return in_parts_; }
  // No row attends to a position that another row of the call appends, so that each row may append its own.
  bool independent() const { return independent_; }
  // The reduction over keys starts anew at multiples of so many pages; 0: never.
  std::int32_t restart_pages() const { return deterministic_ ? kFixedSplitPages : 0; }
  // An item reaches over more than one segment, whose states are then merged.
  bool merges_segments() const { return merges_segments_; }
  std::int64_t partials() const { return partials_; }  // partial results of all parts, in rows

  // For the device: items of the tiles, items of the singles, combines.
  std::span<const std::int32_t> words() const { return words_; }
  std::int64_t singles_offset() const { return shape_.tiles * kItemWords; }
  std::int64_t combines_offset() const { return singles_offset() + shape_.singles * kItemWords; }

  // Bounds for plans of up to `max_rows` rows.
  static constexpr std::int64_t partials_limit(std::int64_t max_rows) { return 2048 + max_rows; }
  static std::int64_t words_limit(std::int64_t max_rows) { return words_limit(max_rows, max_rows); }
  // Of up to `results` results.
  static std::int64_t words_limit(std::int64_t max_rows, std::int64_t results);

  static constexpr std::int64_t kItemWords = sizeof(AttentionItem) / sizeof(std::int32_t);
  static constexpr std::int64_t kCombineWords = sizeof(AttentionCombine) / sizeof(std::int32_t);

 private:
  void begin(std::int64_t rows, bool deterministic);
  void add(const RowSet& rows, const AttentionItem& item);
  void finish(const RowSet& rows, int multiprocessors, std::int32_t n_head);
  void split(const RowSet& rows, std::vector<AttentionItem>& items, std::int64_t wanted);
  std::vector<std::int32_t> parts_of(const std::vector<AttentionItem>& items, std::int64_t wanted) const;

  Shape shape_;
  bool deterministic_ = false;
  bool independent_ = false;
  bool in_parts_ = false;
  bool merges_segments_ = false;
  std::int64_t rows_ = 0;
  std::int64_t results_ = 0;
  std::int64_t partials_ = 0;
  std::vector<AttentionItem> tiles_, singles_;
  std::vector<AttentionCombine> combines_;
  std::vector<std::int32_t> words_;
};

}  // namespace stagecoach::cuda
