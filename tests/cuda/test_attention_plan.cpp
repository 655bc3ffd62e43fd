// AttentionPlan: every row sees each of its pages exactly once, in parts that the combining kernel can find.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <numeric>
#include <set>
#include <utility>
#include <vector>

#include "kernels/cuda/attention_plan.hpp"
#include "kernels/cuda/part_plans.hpp"
#include "tests/unit/kernels_fixture.hpp"

namespace {

using stagecoach::kElsewhere;
using stagecoach::kPagePositions;
using stagecoach::kSegmentPages;
using stagecoach::RowSet;
using stagecoach::RowsView;
using stagecoach::cuda::AttentionCombine;
using stagecoach::cuda::AttentionItem;
using stagecoach::cuda::AttentionPlan;
using stagecoach::cuda::kFixedSplitPages;
using stagecoach::cuda::kTileRows;

// Runs of rows: {sequence, first position, count}.
struct Run {
  std::int32_t sequence, first, count;
};

// `elsewhere(sequence, segment)`: its pages are not here.
template <typename Elsewhere>
RowSet row_set(const std::vector<Run>& runs, const Elsewhere& elsewhere) {
  std::vector<std::int32_t> positions, sequences;
  std::int32_t tables = 0;
  std::int32_t stride = 1;
  for (const Run& run : runs) {
    for (std::int32_t i = 0; i < run.count; ++i) {
      positions.push_back(run.first + i);
      sequences.push_back(run.sequence);
    }
    tables = std::max(tables, run.sequence + 1);
    stride = std::max(stride, (run.first + run.count) / kPagePositions + 1);
  }
  std::vector<std::int32_t> pages(static_cast<std::size_t>(tables) * static_cast<std::size_t>(stride));
  std::iota(pages.rbegin(), pages.rend(), 5);
  for (std::int32_t i = 0; i < tables * stride; ++i) {
    if (elsewhere(i / stride, i % stride / kSegmentPages)) pages[static_cast<std::size_t>(i)] = kElsewhere;
  }
  RowSet rows;
  rows.assign({{}, positions, sequences, pages, stride});
  return rows;
}
RowSet row_set(const std::vector<Run>& runs) {
  return row_set(runs, [](std::int32_t, std::int32_t) { return false; });
}

struct Parsed {
  std::vector<AttentionItem> tiles, singles;
  std::vector<AttentionCombine> combines;
};

template <typename Part>
std::vector<Part> parse(const AttentionPlan& plan, std::int64_t offset, std::int32_t count) {
  std::vector<Part> parts(static_cast<std::size_t>(count));
  if (count > 0) std::memcpy(parts.data(), plan.words().data() + offset, parts.size() * sizeof(Part));
  return parts;
}

Parsed parse(const AttentionPlan& plan) {
  return {parse<AttentionItem>(plan, 0, plan.shape().tiles),
          parse<AttentionItem>(plan, plan.singles_offset(), plan.shape().singles),
          parse<AttentionCombine>(plan, plan.combines_offset(), plan.shape().combines)};
}

void check_item(const RowSet& rows, const AttentionPlan& plan, const AttentionItem& item) {
  REQUIRE(item.first_row >= 0);
  REQUIRE(item.first_row + item.rows <= rows.rows());
  const auto last = static_cast<std::size_t>(item.first_row + item.rows - 1);
  CHECK(item.last_position == rows.positions()[last]);
  for (std::int32_t r = item.first_row; r < item.first_row + item.rows; ++r) {
    CHECK(item.sequence == rows.sequences()[static_cast<std::size_t>(r)]);
  }
  CHECK(item.first_page < item.end_page);
  CHECK(item.end_page <= item.last_position / kPagePositions + 1);
  CHECK(item.first_number == rows.page_of(item.first_row, item.first_page * kPagePositions));
  if (plan.deterministic()) {
    CHECK(item.first_page % kFixedSplitPages == 0);
    if (item.partial >= 0) CHECK(item.end_page - item.first_page <= kFixedSplitPages);
  }
}

// Checks that items and combines together are exactly the attention of the rows.
void check_plan(const RowSet& rows, const AttentionPlan& plan) {
  const Parsed parsed = parse(plan);
  std::vector<std::vector<int>> seen(static_cast<std::size_t>(rows.rows()));
  std::map<std::int32_t, std::pair<std::int32_t, std::int32_t>> of_partial;  // partial: row, first page
  std::set<std::int32_t> written;
  const auto visit = [&](const AttentionItem& item) {
    if (item.rows == 0) return;
    check_item(rows, plan, item);
    for (std::int32_t i = 0; i < item.rows; ++i) {
      const std::int32_t r = item.first_row + i;
      auto& pages = seen[static_cast<std::size_t>(r)];
      pages.resize(std::max(pages.size(), static_cast<std::size_t>(item.end_page)), 0);
      for (std::int32_t p = item.first_page; p < item.end_page; ++p) ++pages[static_cast<std::size_t>(p)];
      if (item.partial >= 0) {
        CHECK(of_partial.emplace(item.partial + i, std::pair(r, item.first_page)).second);
        CHECK(item.partial + i < plan.partials());
      } else {
        CHECK(written.insert(r).second);
      }
    }
  };
  for (const AttentionItem& item : parsed.tiles) {
    CHECK(item.rows <= kTileRows);
    visit(item);
  }
  for (const AttentionItem& item : parsed.singles) {
    CHECK(item.rows <= 1);
    visit(item);
  }
  for (const AttentionCombine& combine : parsed.combines) {
    if (combine.parts == 0) continue;
    CHECK(written.insert(combine.result).second);
    std::int32_t page = -1;
    for (std::int32_t part = 0; part < combine.parts; ++part) {
      const auto found = of_partial.find(combine.first_partial + part * combine.stride);
      REQUIRE(found != of_partial.end());
      CHECK(found->second.first == combine.result);
      CHECK(found->second.second > page);  // merged in the order of positions
      page = found->second.second;
      of_partial.erase(found);
    }
  }
  CHECK(of_partial.empty());
  CHECK(static_cast<std::int64_t>(written.size()) == rows.rows());
  for (std::size_t r = 0; r < seen.size(); ++r) {
    REQUIRE(seen[r].size() > static_cast<std::size_t>(rows.positions()[r] / kPagePositions));
    CHECK(std::all_of(seen[r].begin(), seen[r].end(), [](int count) { return count == 1; }));
  }
  CHECK(plan.partials() <= AttentionPlan::partials_limit(rows.rows()));
  CHECK(static_cast<std::int64_t>(plan.words().size()) <= AttentionPlan::words_limit(rows.rows()));
}

// The same for the parts of `count` rows from `first` on: each is reduced over its own segment, once.
void check_part_plan(const RowSet& rows, const AttentionPlan& plan, std::int64_t first, std::int64_t count) {
  struct Wanted {
    std::int64_t row;
    std::int32_t begin, end;  // pages
  };
  std::vector<Wanted> wanted;
  for (std::int64_t r = first; r < first + count; ++r) {
    const std::int32_t pages = rows.positions()[static_cast<std::size_t>(r)] / kPagePositions + 1;
    for (const std::int32_t segment : rows.segments(rows.sequences()[static_cast<std::size_t>(r)])) {
      if (segment * kSegmentPages >= pages) break;
      wanted.push_back({r, segment * kSegmentPages, std::min(pages, (segment + 1) * kSegmentPages)});
    }
  }
  REQUIRE(plan.results() == static_cast<std::int64_t>(wanted.size()));
  REQUIRE(plan.in_parts());
  const Parsed parsed = parse(plan);
  std::vector<std::vector<int>> seen(wanted.size());                         // pages, from the segment's first
  std::map<std::int32_t, std::pair<std::int32_t, std::int32_t>> of_partial;  // partial: result, first page
  std::set<std::int32_t> written;
  const auto visit = [&](const AttentionItem& item) {
    if (item.rows == 0) return;
    check_item(rows, plan, item);
    for (std::int32_t i = 0; i < item.rows; ++i) {
      const std::int32_t result = item.result + i * item.result_stride;
      REQUIRE(result < plan.results());
      const Wanted& part = wanted[static_cast<std::size_t>(result)];
      CHECK(part.row == item.first_row + i);
      REQUIRE(item.first_page >= part.begin);
      auto& pages = seen[static_cast<std::size_t>(result)];
      pages.resize(static_cast<std::size_t>(kSegmentPages), 0);
      for (std::int32_t p = item.first_page; p < item.end_page; ++p) {
        REQUIRE(p - part.begin < kSegmentPages);
        ++pages[static_cast<std::size_t>(p - part.begin)];
      }
      if (item.partial >= 0) {
        CHECK(of_partial.emplace(item.partial + i, std::pair(result, item.first_page)).second);
        CHECK(item.partial + i < plan.partials());
      } else {
        CHECK(written.insert(result).second);
      }
    }
  };
  for (const AttentionItem& item : parsed.tiles) visit(item);
  for (const AttentionItem& item : parsed.singles) visit(item);
  for (const AttentionCombine& combine : parsed.combines) {
    if (combine.parts == 0) continue;
    CHECK(written.insert(combine.result).second);
    std::int32_t page = -1;
    for (std::int32_t part = 0; part < combine.parts; ++part) {
      const auto found = of_partial.find(combine.first_partial + part * combine.stride);
      REQUIRE(found != of_partial.end());
      CHECK(found->second.first == combine.result);
      CHECK(found->second.second > page);
      page = found->second.second;
      of_partial.erase(found);
    }
  }
  CHECK(of_partial.empty());
  CHECK(static_cast<std::int64_t>(written.size()) == plan.results());
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const auto end = seen[i].begin() + (wanted[i].end - wanted[i].begin);
    CHECK(std::all_of(seen[i].begin(), end, [](int times) { return times == 1; }));
  }
  CHECK(plan.partials() <= AttentionPlan::partials_limit(count));
  CHECK(static_cast<std::int64_t>(plan.words().size()) <= AttentionPlan::words_limit(count, plan.results()));
}

std::int64_t working(const std::vector<AttentionItem>& items) {
  return std::count_if(items.begin(), items.end(), [](const AttentionItem& item) { return item.rows > 0; });
}

}  // namespace

TEST_CASE("attention plan: literal cases") {
  AttentionPlan plan;
  plan.assign(row_set({}), false, 132, 25);
  CHECK(plan.words().empty());

  plan.assign(row_set({{0, 0, 1}}), false, 132, 25);  // one key: one block per head, nothing to combine
  CHECK(plan.shape() == AttentionPlan::Shape{0, 4, 0});
  Parsed parsed = parse(plan);
  CHECK(working(parsed.singles) == 1);
  CHECK(parsed.singles[0].partial == -1);

  plan.assign(row_set({{0, 0, 130}}), false, 1, 12);  // two tiles and two rows over
  parsed = parse(plan);
  CHECK(working(parsed.tiles) == 2);
  CHECK(working(parsed.singles) == 2);
  CHECK(parsed.tiles[0].rows == 64);
  CHECK(parsed.tiles[0].first_row == 64);  // the longer one first
  CHECK(parsed.tiles[0].end_page == 2);
  CHECK(plan.shape().combines == 0);

  plan.assign(row_set({{0, 0, 130}}), true, 1, 12);
  CHECK(working(parse(plan).tiles) == 3);
}

TEST_CASE("attention plan: decoding fills the device") {
  constexpr std::int64_t kMultiprocessors = 132;
  constexpr std::int64_t kHeads = 25;
  for (const std::int32_t batch : {1, 2, 4, 8, 16, 64}) {
    for (const std::int32_t context : {1024, 2048, 5000, 100000}) {
      std::vector<Run> runs;
      for (std::int32_t s = 0; s < batch; ++s) runs.push_back({s, context - 1, 1});
      const RowSet rows = row_set(runs);
      AttentionPlan plan;
      plan.assign(rows, false, kMultiprocessors, kHeads);
      check_plan(rows, plan);
      CAPTURE(batch);
      CAPTURE(context);
      const std::int64_t blocks = working(parse(plan).singles) * kHeads;
      CHECK(blocks >= 3 * kMultiprocessors);
      CHECK(blocks <= std::max<std::int64_t>(12 * kMultiprocessors, batch * kHeads));
    }
  }
}

TEST_CASE("attention plan: rows are independent unless one attends to what another appends") {
  const auto independent = [](const std::vector<Run>& runs) {
    AttentionPlan plan;
    plan.assign(row_set(runs), false, 132, 25);
    return plan.independent();
  };
  CHECK(independent({{0, 0, 1}}));
  CHECK(independent({{0, 200, 1}, {1, 7, 1}, {2, 63, 1}}));
  CHECK_FALSE(independent({{0, 200, 2}}));            // in one page
  CHECK_FALSE(independent({{0, 63, 2}, {1, 7, 1}}));  // the second of them begins another
  std::vector<Run> many;
  for (std::int32_t s = 0; s < 17; ++s) many.push_back({s, 5, 1});
  CHECK_FALSE(independent(many));  // not worth the search
  // Two sequences share a page: to read from is all right, to append to is not.
  const std::vector<std::int32_t> positions{70, 130}, sequences{0, 1};
  for (const auto& [pages, expected] :
       {std::pair{std::vector<std::int32_t>{0, 1, 9, 0, 2, 3}, true}, {{0, 1, 9, 0, 1, 3}, false}}) {
    RowSet rows;
    rows.assign({{}, positions, sequences, pages, 3});
    AttentionPlan plan;
    plan.assign(rows, false, 132, 25);
    CHECK(plan.independent() == expected);
  }
}

TEST_CASE("attention plan: steps of decoding mostly keep their shape") {
  std::set<std::pair<std::int32_t, std::int32_t>> shapes;
  for (std::int32_t position = 0; position < 2048; ++position) {
    AttentionPlan plan;
    plan.assign(row_set({{0, position, 1}, {1, position / 2, 1}}), false, 132, 25);
    shapes.emplace(plan.shape().singles, plan.shape().combines);
  }
  CHECK(shapes.size() <= 8);
}

TEST_CASE("attention plan: a million positions") {
  for (const bool deterministic : {false, true}) {
    const RowSet rows = row_set({{0, 1000000, 1}, {1, 999000, 512}, {2, 5, 3}});
    AttentionPlan plan;
    plan.assign(rows, deterministic, 132, 25);
    check_plan(rows, plan);
  }
}

TEST_CASE("attention plan: random batches") {
  auto random = stagecoach::test::fresh_random();
  for (int round = 0; round < 300; ++round) {
    std::vector<Run> runs;
    const std::int64_t sequences = random.between(0, 12);
    for (std::int32_t s = 0; s < sequences; ++s) {
      const std::int64_t longest = random.between(0, 3) == 0 ? 20000 : 300;
      runs.push_back({s, static_cast<std::int32_t>(random.between(0, longest)),
                      static_cast<std::int32_t>(random.between(0, 2) == 0 ? random.between(0, 300) : 1)});
    }
    const RowSet rows = row_set(runs);
    AttentionPlan plan;
    for (const bool deterministic : {false, true}) {
      plan.assign(rows, deterministic, static_cast<int>(random.between(1, 200)),
                  static_cast<std::int32_t>(random.between(1, 64)));
      check_plan(rows, plan);
    }
  }
}

TEST_CASE("attention plan: parts of random batches, spread over some places") {
  auto random = stagecoach::test::fresh_random();
  for (int round = 0; round < 200; ++round) {
    std::vector<Run> runs;
    const std::int64_t sequences = random.between(1, 8);
    for (std::int32_t s = 0; s < sequences; ++s) {
      const std::int64_t longest = random.between(0, 2) == 0 ? 20000 : 2500;
      runs.push_back({s, static_cast<std::int32_t>(random.between(0, longest)),
                      static_cast<std::int32_t>(random.between(0, 2) == 0 ? random.between(1, 1200) : 1)});
    }
    const std::int64_t places = random.between(1, 4);
    const RowSet rows =
        row_set(runs, [&](std::int32_t s, std::int32_t segment) { return (s + segment) % places != 0; });
    AttentionPlan plan;
    const std::int64_t first = random.between(0, rows.rows());
    const std::int64_t count = random.between(0, rows.rows() - first);
    for (const bool deterministic : {false, true}) {
      plan.assign_parts(rows, first, count, deterministic, static_cast<int>(random.between(1, 200)),
                        static_cast<std::int32_t>(random.between(1, 64)));
      check_part_plan(rows, plan, first, count);
    }
  }
}

TEST_CASE("attention plan: parts of a few rows are split until the device is filled") {
  const RowSet rows = row_set({{0, 16000, 1}}, [](std::int32_t, std::int32_t segment) { return segment % 4 != 1; });
  AttentionPlan plan;
  plan.assign_parts(rows, 0, 1, false, 132, 25);
  check_part_plan(rows, plan, 0, 1);
  CHECK(plan.results() == 4);
  CHECK(working(parse(plan).singles) * 25 >= 3 * 132);
}

TEST_CASE("plans of parts: each is made once, and none that is found has lost its words") {
  auto random = stagecoach::test::fresh_random();
  const RowSet rows = row_set({{0, 3000, 40}, {1, 500, 1}}, [](std::int32_t, std::int32_t s) { return s % 2 == 1; });
  stagecoach::cuda::PartPlans plans;
  std::vector<int> owners(1500, -1);  // of words: number of the call that wrote them
  std::map<std::pair<std::int64_t, std::int64_t>, int> written;
  int made = 0, found = 0;
  for (int call = 0; call < 300; ++call) {
    const std::int64_t first = random.between(0, 4) * 8;
    const std::int64_t count = random.between(0, 1) == 0 ? 1 : 8;
    const auto* plan = plans.find(25, first, count);
    if (plan != nullptr) {
      const auto begin = owners.begin() + plan->first_word;
      CHECK(std::all_of(begin, begin + static_cast<std::ptrdiff_t>(plan->plan.words().size()), [&](int owner) {
        return owner == written.at({first, count});
      }));
      ++found;
    } else {
      plan = &plans.make(rows, 25, first, count, false, 132, static_cast<std::int64_t>(owners.size()));
      const auto words = plan->first_word + static_cast<std::int64_t>(plan->plan.words().size());
      REQUIRE(words <= static_cast<std::int64_t>(owners.size()));
      std::fill(owners.begin() + plan->first_word, owners.begin() + words, call);
      written[{first, count}] = call;
      ++made;
    }
    check_part_plan(rows, plan->plan, first, count);
    CHECK(plans.find(25, first, count) == plan);
    CHECK(plans.find(24, first, count) == nullptr);
  }
  CHECK(found > 10);
  CHECK(made > 10);  // there is no room for all
  plans.forget();
  CHECK(plans.find(25, 0, 1) == nullptr);
}
