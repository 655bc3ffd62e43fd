// How rows lie on the device: literal cases, and that steps of decoding keep their layout.
#include <doctest/doctest.h>

#include <numeric>
#include <set>
#include <vector>

#include "kernels/cuda/row_words.hpp"

using namespace stagecoach;
using stagecoach::cuda::DeviceRows;
using stagecoach::cuda::RowWords;

namespace {

struct Rows {
  std::vector<std::int32_t> tokens, positions, sequences, pages;
  std::int64_t stride = 1;
  RowsView view() const { return {tokens, positions, sequences, pages, stride}; }
};

struct Written {
  explicit Written(const Rows& rows) {
    layout.assign(rows.view());
    words.assign(layout.bytes() / 4 + 1, 77);
    layout.write(rows.view(), reinterpret_cast<std::byte*>(words.data()));
    at = layout.at(words.data());
    CHECK(words.back() == 77);
  }
  RowWords layout;
  std::vector<std::int32_t> words;
  DeviceRows at;
};

std::vector<std::int32_t> part(const std::int32_t* from, std::int64_t count) {
  return {from, from + count};
}

// One row of each of `count` sequences.
Rows decoding(std::int32_t count, std::int64_t stride) {
  Rows rows;
  rows.stride = stride;
  for (std::int32_t s = 0; s < count; ++s) {
    rows.tokens.push_back(100 + s);
    rows.positions.push_back(5 * s);
    rows.sequences.push_back(s);
    for (std::int64_t p = 0; p < stride; ++p) rows.pages.push_back(static_cast<std::int32_t>(10 * s + p));
  }
  return rows;
}

}  // namespace

TEST_CASE("row words: a chunk of a prompt lies as it is") {
  const Rows rows{{1, 2, 3}, {4, 5, 6}, {0, 0, 0}, {7, 8}, 2};
  const Written w(rows);
  CHECK_FALSE(w.layout.repeats());
  CHECK(w.layout.padded_rows() == 3);
  CHECK(w.words == std::vector<std::int32_t>{4, 5, 6, 0, 0, 0, 1, 2, 3, 7, 8, 77});
  CHECK(w.at.rows == 3);
  CHECK(w.at.table_stride == 2);
}

TEST_CASE("row words: steps of decoding are padded with rows of no position and tables of more pages") {
  const Rows rows = decoding(3, 2);
  const Written w(rows);
  CHECK(w.layout.repeats());
  CHECK(w.layout.padded_rows() == 4);
  CHECK(w.at.rows == 3);
  CHECK(w.at.table_stride == 16);
  CHECK(part(w.at.positions, 4) == std::vector<std::int32_t>{0, 5, 10, -1});
  CHECK(part(w.at.sequences, 4) == std::vector<std::int32_t>{0, 1, 2, 0});
  CHECK(part(w.at.tokens, 4) == std::vector<std::int32_t>{100, 101, 102, 0});
  for (std::int32_t s = 0; s < 3; ++s) {
    std::vector<std::int32_t> table(16, 0);
    table[0] = 10 * s;
    table[1] = 10 * s + 1;
    CHECK(part(w.at.pages + 16 * s, 16) == table);
  }
  Rows without = rows;
  without.tokens.clear();
  const Written embeds_nothing(without);
  CHECK(embeds_nothing.at.tokens == nullptr);
  CHECK(part(embeds_nothing.at.pages, 2) == std::vector<std::int32_t>{0, 1});
}

TEST_CASE("row words: few layouts for all sizes of batches and lengths") {
  std::set<std::pair<std::int64_t, std::int64_t>> layouts;
  for (std::int32_t count = 1; count <= 300; ++count) {
    for (const std::int64_t stride : {1, 3, 16, 17, 31, 32, 33}) {
      RowWords words;
      words.assign(decoding(count, stride).view());
      CHECK(words.padded_rows() >= count);
      CHECK(words.padded_rows() <= std::max(2 * count - 1, 1));
      CHECK(words.repeats() == (count <= 256));
      const std::vector<std::int32_t> memory(words.bytes() / sizeof(std::int32_t));
      const DeviceRows at = words.at(memory.data());
      CHECK(at.rows == count);
      CHECK(at.table_stride >= stride);
      if (words.repeats()) layouts.emplace(words.padded_rows(), at.table_stride);
    }
  }
  CHECK(layouts.size() == 13 * 3);
}
