#include "kernels/cuda/row_words.hpp"

#include <algorithm>
#include <array>
#include <bit>

namespace stagecoach::cuda {
namespace {

// Numbers of rows that steps are padded to. Few-row products cost the same for 5 to 8 rows and for 9 to 16; beyond the
// largest, launches take little of a step's time.
constexpr std::array<std::int64_t, 13> kPaddedRows{1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256};

// Pages of a table, at least: all 1,024 positions of GPT-2.
constexpr std::uint64_t kLeastStride = 16;

bool all_apart(std::span<const std::int32_t> sequences) {
  return std::ranges::adjacent_find(sequences) == sequences.end();
}

}  // namespace

void RowWords::assign(const RowsView& view) {
  rows_ = room_ = static_cast<std::int64_t>(view.positions.size());
  stride_ = view.table_stride;
  tables_ = stride_ == 0 ? 0 : static_cast<std::int64_t>(view.pages.size()) / stride_;
  tokens_ = !view.tokens.empty();
  const auto* const room = std::ranges::lower_bound(kPaddedRows, rows_);
  repeats_ = rows_ > 0 && room != kPaddedRows.end() && all_apart(view.sequences);
  if (repeats_) {
    room_ = *room;
    stride_ = static_cast<std::int64_t>(std::bit_ceil(std::max(static_cast<std::uint64_t>(stride_), kLeastStride)));
  }
  words_ = static_cast<std::size_t>((tokens_ ? 3 : 2) * room_ + tables_ * stride_);
}

void RowWords::write(const RowsView& view, std::byte* to) const {
  auto* next = reinterpret_cast<std::int32_t*>(to);
  const auto put = [&next](std::span<const std::int32_t> values, std::int64_t room, std::int32_t rest) {
    std::ranges::copy(values, next);
    std::fill(next + values.size(), next + room, rest);
    next += room;
  };
  put(view.positions, room_, -1);
  put(view.sequences, room_, 0);
  if (tokens_) put(view.tokens, room_, 0);
  const auto stride = static_cast<std::size_t>(view.table_stride);
  for (std::size_t t = 0; t < static_cast<std::size_t>(tables_); ++t) {
    put(view.pages.subspan(t * stride, stride), stride_, 0);
  }
}

DeviceRows RowWords::at(const std::int32_t* device) const {
  DeviceRows rows;
  rows.rows = rows_;
  rows.positions = device;
  rows.sequences = rows.positions + room_;
  rows.tokens = tokens_ ? rows.sequences + room_ : nullptr;
  rows.pages = rows.sequences + room_ + (tokens_ ? room_ : 0);
  rows.table_stride = stride_;
  return rows;
}

}  // namespace stagecoach::cuda
