#include "kernels/row_set.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

namespace stagecoach {
namespace {

void check_view(const RowsView& view) {
  const std::size_t rows = view.positions.size();
  if ((!view.tokens.empty() && view.tokens.size() != rows) || view.sequences.size() != rows) {
    throw std::invalid_argument(fmt::format("set_rows: {} tokens, {} positions, {} sequences", view.tokens.size(), rows,
                                            view.sequences.size()));
  }
  if (view.table_stride < 0 || (view.table_stride == 0 && !view.pages.empty()) ||
      (view.table_stride > 0 && view.pages.size() % static_cast<std::size_t>(view.table_stride) != 0)) {
    throw std::invalid_argument(
        fmt::format("set_rows: {} page numbers do not fill tables of {}", view.pages.size(), view.table_stride));
  }
}

}  // namespace

void RowSet::assign(const RowsView& view) {
  check_view(view);
  const std::int64_t tables =
      view.table_stride == 0 ? 0 : static_cast<std::int64_t>(view.pages.size()) / view.table_stride;
  std::vector<std::int32_t> last(static_cast<std::size_t>(tables), -1);
  for (std::size_t r = 0; r < view.positions.size(); ++r) {
    const std::int32_t s = view.sequences[r];
    const std::int32_t position = view.positions[r];
    if (s < 0 || s >= tables) {
      throw std::invalid_argument(fmt::format("set_rows: row {} has sequence {} of {} page tables", r, s, tables));
    }
    if (position <= last[static_cast<std::size_t>(s)] || position / kPagePositions >= view.table_stride) {
      throw std::invalid_argument(
          fmt::format("set_rows: row {} has position {}; its sequence is at {} and its table holds {} pages "
                      "of {} positions",
                      r, position, last[static_cast<std::size_t>(s)], view.table_stride, kPagePositions));
    }
    last[static_cast<std::size_t>(s)] = position;
  }
  tokens_.assign(view.tokens.begin(), view.tokens.end());
  positions_.assign(view.positions.begin(), view.positions.end());
  sequences_.assign(view.sequences.begin(), view.sequences.end());
  pages_.assign(view.pages.begin(), view.pages.end());
  stride_ = view.table_stride;
  first_page_ = 0;
  last_page_ = -1;
  bool any = false;
  segments_.resize(static_cast<std::size_t>(tables));
  for (std::int64_t s = 0; s < tables; ++s) {
    segments_[static_cast<std::size_t>(s)].clear();
    if (last[static_cast<std::size_t>(s)] < 0) continue;
    const std::int64_t used = last[static_cast<std::size_t>(s)] / kPagePositions + 1;
    const auto [low, high] =
        std::minmax_element(table(static_cast<std::int32_t>(s)), table(static_cast<std::int32_t>(s)) + used);
    first_page_ = any ? std::min(first_page_, *low) : *low;
    last_page_ = any ? std::max(last_page_, *high) : *high;
    any = true;
    find_segments(static_cast<std::int32_t>(s), static_cast<std::int32_t>(used));
  }
}

void RowSet::find_segments(std::int32_t sequence, std::int32_t pages) {
  for (std::int32_t first = 0; first < pages; first += kSegmentPages) {
    const std::int32_t end = std::min(pages, first + kSegmentPages);
    const auto here = std::count_if(table(sequence) + first, table(sequence) + end,
                                    [](std::int32_t page) { return page != kElsewhere; });
    if (here == end - first) {
      segments_[static_cast<std::size_t>(sequence)].push_back(first / kSegmentPages);
    } else if (here != 0) {
      throw std::invalid_argument(fmt::format("set_rows: {} of pages {} to {} of sequence {} are here, not all or none",
                                              here, first, end - 1, sequence));
    }
  }
}

std::int64_t RowSet::parts(std::int64_t r) const {
  const std::vector<std::int32_t>& here = segments(sequences_[static_cast<std::size_t>(r)]);
  const std::int32_t own = positions_[static_cast<std::size_t>(r)] / kSegmentPositions;
  return std::ranges::upper_bound(here, own) - here.begin();
}

std::vector<RowGroup> RowSet::groups(std::int64_t limit, std::int64_t first, std::int64_t count) const {
  std::vector<RowGroup> result;
  for (std::int64_t r = first; r < first + count; ++r) {
    const std::int32_t s = sequences_[static_cast<std::size_t>(r)];
    if (!result.empty() && result.back().sequence == s && result.back().rows < limit) {
      ++result.back().rows;
    } else {
      result.push_back({r, 1, s});
    }
  }
  return result;
}

}  // namespace stagecoach
