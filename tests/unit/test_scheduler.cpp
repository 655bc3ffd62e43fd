#include <doctest/doctest.h>

#include <algorithm>
#include <deque>
#include <map>

#include "runtime/context_shards.hpp"
#include "runtime/kv_cache.hpp"
#include "runtime/scheduler.hpp"
#include "tests/unit/request_of.hpp"

using namespace stagecoach;
using stagecoach::test::request_of;

TEST_CASE("a prompt's segments are dealt out to the shards in turn, the first to the freest") {
  for (std::int32_t shards = 1; shards <= 5; ++shards) {
    for (std::int32_t first = 0; first < shards; ++first) {
      std::vector<std::int32_t> counts(static_cast<std::size_t>(shards));
      for (std::int32_t index = 0; index < 200; ++index) {
        for (std::int32_t shard = 0; shard < shards; ++shard) {
          REQUIRE(pages_of_shard(index, shard, first, shards) == counts[static_cast<std::size_t>(shard)]);
        }
        ++counts[static_cast<std::size_t>(shard_of_index(index, first, shards))];
      }
    }
  }
  SchedulerLimits limits;
  limits.n_positions = 10000;
  limits.pages = 64;
  limits.slots = 4;
  limits.chunk_tokens = 10000;
  limits.in_flight = 4;
  limits.shards = 2;
  CHECK(pages_needed(request_of(0, 2500, 1), 10000, 2) == 24);  // 40 pages: 16 and 8, and 16
  Scheduler scheduler(limits);
  scheduler.add(request_of(0, 2500, 1));
  scheduler.add(request_of(1, 100, 1));
  const auto m = scheduler.next();
  REQUIRE(m);
  std::vector<std::int32_t> owners;
  for (const SlotCommand& command : m->commands) {
    for (const std::int32_t page : command.pages) owners.push_back(shard_of_page(page, 2));
  }
  REQUIRE(owners.size() == 42);
  for (std::int32_t i = 0; i < 40; ++i) CHECK(owners[static_cast<std::size_t>(i)] == i / kSegmentPages % 2);
  CHECK(owners[40] == 1);  // of which 48 are free, of the other 40
  CHECK(owners[41] == 1);
  CHECK_THROWS_AS(scheduler.add(request_of(2, 9000, 1)), std::invalid_argument);  // 80 pages of one shard
}

TEST_CASE("samples share the pages of their prompt") {
  // 200 prompt tokens are 3 full pages and one that each sample copies; 10 new tokens fit it.
  SchedulerLimits limits{1000, -1, 4 + 5, 8, 300, 1, false};
  Scheduler scheduler(limits);
  Request request = request_of(0, 200, 10);
  request.num_samples = 5;
  CHECK(pages_needed(request, 1000) == 5);
  scheduler.add(request);
  const auto prompt = scheduler.next();
  REQUIRE(prompt);
  CHECK(prompt->rows.size() == 199);
  CHECK(scheduler.complete({prompt->id, {}}).finished.empty());
  const auto samples = scheduler.next();
  REQUIRE(samples);
  CHECK(samples->rows.size() == 5);
  for (const Row& row : samples->rows) {
    CHECK(row.position == 199);
    CHECK(row.flags == kRowSample);
  }
  CHECK(scheduler.active() == 5);
  CHECK(scheduler.free_pages() == 0);
}

TEST_CASE("several chunks of one prompt go one behind the other") {
  SchedulerLimits limits{100, -1, 2, 1, 10, 3, false};
  Scheduler scheduler(limits);
  scheduler.add(request_of(0, 25, 1));
  const std::vector<std::size_t> expected{10, 10, 5};
  for (const std::size_t rows : expected) {
    const auto m = scheduler.next();
    REQUIRE(m);
    CHECK(m->rows.size() == rows);
    CHECK(m->rows.back().flags == (rows == 5 ? kRowSample : 0U));
  }
  CHECK(!scheduler.next());
}

TEST_CASE("chunks may be planned by position, and leave room for the next prompt") {
  SchedulerLimits limits{100, -1, 4, 2, 10, 4, false, {10, 7, 4}};
  Scheduler scheduler(limits);
  scheduler.add(request_of(0, 23, 1));
  scheduler.add(request_of(1, 12, 1));
  const std::vector<std::size_t> expected{10, 7, 4, 10};  // the last: 2 of the first prompt, 8 of the second
  for (const std::size_t rows : expected) {
    const auto m = scheduler.next();
    REQUIRE(m);
    CHECK(m->rows.size() == rows);
    CHECK(m->rows.back().slot == (rows == 10 && m->id > 1 ? 1 : 0));
  }
  CHECK_THROWS_AS(Scheduler({100, -1, 4, 2, 10, 4, false, {11}}), std::invalid_argument);
  CHECK_THROWS_AS(Scheduler({100, -1, 4, 2, 10, 4, false, {5, 0}}), std::invalid_argument);
}

TEST_CASE("decoding sequences are shared out over the microbatches in flight") {
  SchedulerLimits limits{100, -1, 8, 4, 100, 2, false};
  Scheduler scheduler(limits);
  for (int i = 0; i < 4; ++i) {
    scheduler.add(request_of(i, 2, 50));
  }
  const auto prefill = scheduler.next();
  REQUIRE(prefill);
  CHECK(prefill->rows.size() == 8);
  TokenBatch tokens{prefill->id, {}};
  for (std::int32_t slot = 0; slot < 4; ++slot) tokens.tokens.push_back({slot, 5, 0.0F});
  scheduler.complete(tokens);
  const auto a = scheduler.next();
  const auto b = scheduler.next();
  REQUIRE(a);
  REQUIRE(b);
  CHECK(a->rows.size() == 2);
  CHECK(b->rows.size() == 2);
}

TEST_CASE("a request that can never run is refused with the numbers") {
  Scheduler scheduler({100, -1, 1, 1, 10, 1, false});
  CHECK_THROWS_AS(scheduler.add(request_of(0, 101, 1)), std::invalid_argument);
  CHECK_THROWS_AS(scheduler.add(request_of(0, 0, 1)), std::invalid_argument);
  CHECK_THROWS_WITH(scheduler.add(request_of(7, 60, 10)), "request 7 needs 2 KV pages, the pool has 1");
}

TEST_CASE("tokens that nobody asked for are refused") {
  Scheduler scheduler({100, -1, 4, 2, 10, 1, false});
  CHECK_THROWS_AS(scheduler.complete({5, {}}), WireError);
  scheduler.add(request_of(0, 3, 2));
  const auto m = scheduler.next();
  REQUIRE(m);
  CHECK_THROWS_AS(scheduler.complete({m->id, {}}), WireError);
}

TEST_CASE("very long prompts and very many pages: headers stay small, tables complete, nothing overflows") {
  SchedulerLimits limits;
  limits.n_positions = 300000;
  limits.pages = 3000000;
  limits.slots = 8;
  limits.chunk_tokens = 256;
  limits.in_flight = 4;
  Scheduler scheduler(limits);
  const std::int32_t lengths[] = {131072, 300000, 262144};
  for (const std::int32_t length : lengths) {
    Request request = request_of(length, length, 70);
    request.num_samples = length == 262144 ? 2 : 1;
    scheduler.add(std::move(request));
  }
  const auto backend = make_reference_backend();
  KvCache tables(*backend, {.blocks = 0, .pages = limits.pages, .slots = limits.tables()});  // no pages behind them
  std::deque<Microbatch> in_flight;
  std::map<std::int64_t, std::size_t> generated;
  std::size_t largest = 0;
  std::int32_t farthest = 0;
  while (true) {
    while (std::optional<Microbatch> next = scheduler.next()) {
      const std::vector<std::byte> bytes = encode(*next);
      largest = std::max(largest, bytes.size());
      in_flight.push_back(decode_microbatch(bytes));
      REQUIRE(in_flight.back() == *next);
    }
    if (in_flight.empty()) break;
    const Microbatch m = std::move(in_flight.front());
    in_flight.pop_front();
    tables.apply(m.commands);
    TokenBatch tokens{m.id, {}};
    for (const Row& row : m.rows) {
      REQUIRE(static_cast<std::size_t>(row.position / kPagePositions) < tables.table(row.slot).size());
      farthest = std::max(farthest, row.position);
      if (wants_logits(row)) tokens.tokens.push_back({row.slot, 5, 0.0F});
    }
    for (const Sample& sample : scheduler.complete(tokens).finished) {
      generated[sample.index] += sample.tokens.size();
    }
  }
  CHECK(scheduler.idle());
  CHECK(farthest == limits.n_positions - 1);
  CHECK(generated == std::map<std::int64_t, std::size_t>{{131072, 70}, {300000, 1}, {262144, 140}});
  CHECK(largest < 8000);  // 256 rows of 16 bytes, and the pages of one chunk
  CHECK(scheduler.free_pages() == limits.pages);
}
