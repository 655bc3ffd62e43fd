#include "kernels/cuda/attention_plan.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

namespace stagecoach::cuda {
namespace {

// Fewer rows of a sequence than this are singles: a tile of tensor-core rows would be mostly empty.
constexpr std::int64_t kFewRows = 4;

// Blocks per multiprocessor that keep it busy: singles wait for memory, a few hundred bytes per thread.
constexpr std::int64_t kSingleBlocks = 6;
constexpr std::int64_t kTileBlocks = 3;

std::int64_t pages(const AttentionItem& item) {
  return item.end_page - item.first_page;
}

std::int64_t ceil_divide(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

// Four sizes per octave: empty tiles are launched for nothing.
std::int64_t rounded(std::int64_t count) {
  if (count == 0) return 0;
  const auto octave = static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(count)));
  const std::int64_t step = std::max<std::int64_t>(octave / 4, 1);
  return std::max<std::int64_t>(ceil_divide(count, step) * step, 4);
}
// One size per octave, where shapes are recorded: empty blocks are cheaper than to record another shape.
std::int64_t to_power_of_two(std::int64_t count) {
  if (count == 0) return 0;
  return std::max<std::int64_t>(static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(count))), 4);
}

AttentionItem whole(const RowSet& rows, std::int64_t first, std::int64_t count) {
  const std::int32_t last = rows.positions()[static_cast<std::size_t>(first + count - 1)];
  return {static_cast<std::int32_t>(first),
          static_cast<std::int32_t>(count),
          rows.sequences()[static_cast<std::size_t>(first)],
          0,
          last / kPagePositions + 1,
          last,
          -1,
          rows.page_of(first, 0),
          static_cast<std::int32_t>(first),
          1};
}

// Beyond so many rows a launch more is nothing, and looking takes its time.
constexpr std::int64_t kIndependentRows = 16;

bool are_independent(const RowSet& rows) {
  if (rows.rows() > kIndependentRows) return false;
  for (std::int64_t r = 0; r < rows.rows(); ++r) {
    const std::int32_t own = rows.page_of(r, rows.positions()[static_cast<std::size_t>(r)]);
    for (std::int64_t other = 0; other < rows.rows(); ++other) {
      if (other == r) continue;
      const std::int32_t last = rows.positions()[static_cast<std::size_t>(other)];
      for (std::int32_t p = 0; p <= last / kPagePositions; ++p) {
        if (rows.page_of(other, p * kPagePositions) == own) return false;
      }
    }
  }
  return true;
}

std::int32_t segment_of(const RowSet& rows, std::int64_t row) {
  return rows.positions()[static_cast<std::size_t>(row)] / kSegmentPositions;
}

template <typename Part>
void append_words(std::vector<std::int32_t>& words, const std::vector<Part>& parts, std::int64_t count) {
  const std::size_t begin = words.size();
  words.resize(begin + static_cast<std::size_t>(count) * sizeof(Part) / sizeof(std::int32_t), 0);
  if (!parts.empty()) std::memcpy(words.data() + begin, parts.data(), parts.size() * sizeof(Part));
}

}  // namespace

void AttentionPlan::assign(const RowSet& rows, bool deterministic, int multiprocessors, std::int32_t n_head) {
  begin(rows.rows(), deterministic);
  independent_ = are_independent(rows);
  for (const RowGroup& group : rows.groups(kTileRows)) add(rows, whole(rows, group.first_row, group.rows));
  results_ = rows_;
  finish(rows, multiprocessors, n_head);
}

void AttentionPlan::assign_parts(const RowSet& rows, std::int64_t first, std::int64_t count, bool deterministic,
                                 int multiprocessors, std::int32_t n_head) {
  begin(count, deterministic);
  in_parts_ = true;
  for (const RowGroup& group : rows.groups(kTileRows, first, count)) {
    const std::vector<std::int32_t>& segments = rows.segments(group.sequence);
    // Rows that end in one segment have equally many parts.
    const std::int64_t end = group.first_row + group.rows;
    for (std::int64_t next = group.first_row, row = next; row < end; row = next) {
      while (next < end && segment_of(rows, next) == segment_of(rows, row)) ++next;
      const std::int64_t parts = rows.parts(row);
      for (std::int64_t i = 0; i < parts; ++i) {
        AttentionItem item = whole(rows, row, next - row);
        item.first_page = segments[static_cast<std::size_t>(i)] * kSegmentPages;
        item.end_page = std::min(item.end_page, item.first_page + kSegmentPages);
        item.first_number = rows.page_of(row, item.first_page * kPagePositions);
        item.result = static_cast<std::int32_t>(results_ + i);
        item.result_stride = static_cast<std::int32_t>(parts);
        add(rows, item);
      }
      results_ += (next - row) * parts;
    }
  }
  finish(rows, multiprocessors, n_head);
}

void AttentionPlan::begin(std::int64_t rows, bool deterministic) {
  deterministic_ = deterministic;
  independent_ = false;
  in_parts_ = false;
  rows_ = rows;
  results_ = 0;
  partials_ = 0;
  tiles_.clear();
  singles_.clear();
  combines_.clear();
  words_.clear();
}

// An item as it is, or its rows one by one.
void AttentionPlan::add(const RowSet& rows, const AttentionItem& item) {
  if (item.rows >= (deterministic_ ? 2 : kFewRows)) {
    tiles_.push_back(item);
    return;
  }
  for (std::int32_t i = 0; i < item.rows; ++i) {
    AttentionItem single = item;
    single.first_row += i;
    single.rows = 1;
    single.last_position = rows.positions()[static_cast<std::size_t>(single.first_row)];
    single.end_page = std::min(item.end_page, single.last_position / kPagePositions + 1);
    single.result += i * item.result_stride;
    singles_.push_back(single);
  }
}

void AttentionPlan::finish(const RowSet& rows, int multiprocessors, std::int32_t n_head) {
  const std::int64_t per_head = std::max<std::int64_t>(n_head, 1);
  split(rows, singles_, ceil_divide(kSingleBlocks * multiprocessors, per_head));
  split(rows, tiles_, ceil_divide(kTileBlocks * multiprocessors, per_head));
  const auto is_long = [](const AttentionItem& item) {
    return (item.end_page - 1) / kSegmentPages > item.first_page / kSegmentPages;
  };
  merges_segments_ = deterministic_ && (std::ranges::any_of(tiles_, is_long) || std::ranges::any_of(singles_, is_long));
  shape_ = {static_cast<std::int32_t>(rounded(static_cast<std::int64_t>(tiles_.size()))),
            static_cast<std::int32_t>(to_power_of_two(static_cast<std::int64_t>(singles_.size()))),
            static_cast<std::int32_t>(to_power_of_two(static_cast<std::int64_t>(combines_.size())))};
  append_words(words_, tiles_, shape_.tiles);
  append_words(words_, singles_, shape_.singles);
  append_words(words_, combines_, shape_.combines);
}

// How many parts each item is cut into, so that about `wanted` equal parts arise and their partial results have room.
std::vector<std::int32_t> AttentionPlan::parts_of(const std::vector<AttentionItem>& items, std::int64_t wanted) const {
  const std::int64_t room = partials_limit(rows_) - partials_;
  std::int64_t total = 0;
  for (const AttentionItem& item : items) total += pages(item);
  std::vector<std::int32_t> parts(items.size(), 1);
  for (std::int64_t part_pages = std::max<std::int64_t>(1, ceil_divide(total, wanted));; part_pages *= 2) {
    std::int64_t needed = 0;
    for (std::size_t i = 0; i < items.size(); ++i) {
      const std::int64_t nearest = (pages(items[i]) + part_pages / 2) / part_pages;
      std::int64_t count = std::max<std::int64_t>(nearest, 1);
      if (deterministic_ && count > 1) count = ceil_divide(pages(items[i]), kFixedSplitPages);
      parts[i] = static_cast<std::int32_t>(count);
      if (count > 1) needed += count * items[i].rows;
    }
    if (needed <= room) return parts;
  }
}

void AttentionPlan::split(const RowSet& rows, std::vector<AttentionItem>& items, std::int64_t wanted) {
  const std::vector<std::int32_t> parts = parts_of(items, wanted);
  std::vector<AttentionItem> result;
  for (std::size_t i = 0; i < items.size(); ++i) {
    const AttentionItem& item = items[i];
    if (parts[i] == 1) {
      result.push_back(item);
      continue;
    }
    const auto border = [&](std::int64_t part) {
      const std::int64_t page =
          deterministic_ ? std::min(part * kFixedSplitPages, pages(item)) : pages(item) * part / parts[i];
      return item.first_page + static_cast<std::int32_t>(page);
    };
    const auto first_partial = static_cast<std::int32_t>(partials_);
    for (std::int32_t part = 0; part < parts[i]; ++part) {
      AttentionItem piece = item;
      piece.first_page = border(part);
      piece.end_page = border(part + 1);
      piece.first_number = rows.page_of(item.first_row, piece.first_page * kPagePositions);
      piece.partial = first_partial + part * item.rows;
      result.push_back(piece);
    }
    for (std::int32_t r = 0; r < item.rows; ++r) {
      combines_.push_back({item.result + r * item.result_stride, first_partial + r, parts[i], item.rows});
    }
    partials_ += std::int64_t{parts[i]} * item.rows;
  }
  // The longest first, so that no block begins a long item when the others are about to finish.
  std::stable_sort(result.begin(), result.end(),
                   [](const AttentionItem& a, const AttentionItem& b) { return pages(a) > pages(b); });
  items = std::move(result);
}

std::int64_t AttentionPlan::words_limit(std::int64_t max_rows, std::int64_t results) {
  // Every part of a split item has at least one partial result; rounding at most doubles, or makes 4.
  const std::int64_t items = results + partials_limit(max_rows);
  return kItemWords * (2 * items + 8) + kCombineWords * (2 * results + 4);
}

}  // namespace stagecoach::cuda
