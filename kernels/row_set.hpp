// The rows of the last `set_rows`, copied and checked, for backends that work in host memory.
//
// Knows tokens, positions and page tables; knows no tensors. Row `r` attends to positions 0..positions[r] of
// its sequence.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/backend.hpp"

namespace stagecoach {

// Consecutive rows of one call that belong to one sequence; their positions increase.
struct RowGroup {
  std::int64_t first_row = 0;
  std::int64_t rows = 0;
  std::int32_t sequence = 0;
};

class RowSet {
 public:
  // Throws std::invalid_argument for sizes that do not match, a sequence without a table, positions that are
  // negative or do not increase within their sequence, positions beyond their table, and segments that are here in
  // part. `tokens` may be empty where nothing is embedded.
  void assign(const RowsView& view);

  std::int64_t rows() const { return static_cast<std::int64_t>(positions_.size()); }
  const std::vector<std::int32_t>& tokens() const { return tokens_; }
  const std::vector<std::int32_t>& positions() const { return positions_; }
  const std::vector<std::int32_t>& sequences() const { return sequences_; }
  const std::int32_t* table(std::int32_t sequence) const { return pages_.data() + sequence * stride_; }
  // The page that holds position `position` of the sequence of row `r`.
  std::int32_t page_of(std::int64_t r, std::int32_t position) const {
    return table(sequences_[static_cast<std::size_t>(r)])[position / kPagePositions];
  }
  // Groups of at most `limit` rows.
  std::vector<RowGroup> groups(std::int64_t limit) const { return groups(limit, 0, rows()); }
  // Of `count` rows from `first` on.
  std::vector<RowGroup> groups(std::int64_t limit, std::int64_t first, std::int64_t count) const;

  // Segments that are here and begin at or before a row's position: its parts.
  std::int64_t parts(std::int64_t r) const;
  // The numbers of those of a sequence, as far as its rows see, in order.
  const std::vector<std::int32_t>& segments(std::int32_t sequence) const {
    return segments_[static_cast<std::size_t>(sequence)];
  }

  // Smallest and largest page number that the rows touch; 0 and -1 without rows.
  std::int32_t first_page() const { return first_page_; }
  std::int32_t last_page() const { return last_page_; }

 private:
  void find_segments(std::int32_t sequence, std::int32_t pages);

  std::vector<std::int32_t> tokens_, positions_, sequences_, pages_;
  std::vector<std::vector<std::int32_t>> segments_;  // [sequence]
  std::int64_t stride_ = 0;
  std::int32_t first_page_ = 0;
  std::int32_t last_page_ = -1;
};

}  // namespace stagecoach
