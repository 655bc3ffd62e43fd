#include <doctest/doctest.h>

#include <map>
#include <random>
#include <set>

#include "runtime/kv_cache.hpp"
#include "runtime/scheduler.hpp"

using namespace stagecoach;

namespace {

unsigned below(std::mt19937& random, std::size_t bound) {
  return static_cast<unsigned>(random() % bound);
}

Request request_of(std::int64_t index, std::int32_t prompt, std::int32_t max_new) {
  Request r;
  r.index = index;
  r.tokens.assign(static_cast<std::size_t>(prompt), 1);
  r.max_new_tokens = max_new;
  return r;
}

// Plays the stages: checks every microbatch against its own page tables, and answers in order with random tokens.
class Stages {
 public:
  Stages(const SchedulerLimits& limits, std::mt19937& random) : limits_(limits), random_(random) {}

  void take(const Microbatch& m) {
    REQUIRE(!m.rows.empty());
    REQUIRE(static_cast<std::int32_t>(m.rows.size()) <= limits_.max_rows());
    std::set<std::int32_t> seen;
    TokenBatch answer;
    answer.id = m.id;
    for (const SlotCommand& c : m.commands) apply(c);
    std::int32_t last = -1;
    for (const Row& row : m.rows) {
      if (row.slot != last) REQUIRE(seen.insert(row.slot).second);  // rows of a slot are adjacent
      last = row.slot;
      REQUIRE(row.position == next_position_[row.slot]++);  // every position once, in order
      REQUIRE(row.position < static_cast<std::int32_t>(tables_[row.slot].size()) * kPagePositions);
      REQUIRE(row.position < limits_.n_positions);
      if ((row.flags & kRowSample) != 0)
        answer.tokens.push_back({row.slot, static_cast<std::int32_t>(below(random_, 7)), 0.0F});
    }
    queue_.push_back(std::move(answer));
    REQUIRE(static_cast<std::int32_t>(queue_.size()) <= limits_.in_flight);
  }
  bool empty() const { return queue_.empty(); }
  TokenBatch answer() {
    TokenBatch first = std::move(queue_.front());
    queue_.pop_front();
    return first;
  }

 private:
  void apply(const SlotCommand& c) {
    if (c.kind == SlotCommand::Kind::kDrop) {
      for (const std::int32_t page : tables_[c.slot]) owner_.erase(page);
      tables_[c.slot].clear();
      next_position_[c.slot] = 0;
      return;
    }
    for (const std::int32_t page : c.pages) {
      REQUIRE(page >= 0);
      REQUIRE(page < limits_.pages);
      REQUIRE(owner_.emplace(page, c.slot).second);  // no page belongs to two sequences
      tables_[c.slot].push_back(page);
    }
  }

  SchedulerLimits limits_;
  std::mt19937& random_;
  std::deque<TokenBatch> queue_;
  std::map<std::int32_t, std::vector<std::int32_t>> tables_;
  std::map<std::int32_t, std::int32_t> next_position_;
  std::map<std::int32_t, std::int32_t> owner_;
};

}  // namespace

TEST_CASE("random workloads: every request finishes once, nothing leaks, bounds are kept") {
  const unsigned seed = std::random_device{}();
  std::mt19937 random(seed);
  for (int round = 0; round < 2000; ++round) {
    INFO("seed " << seed << " round " << round);
    SchedulerLimits limits;
    limits.n_positions = 1 + static_cast<std::int32_t>(below(random, 300));
    limits.eos = static_cast<std::int32_t>(below(random, 9)) - 1;
    limits.pages = pages_for(limits.n_positions) + static_cast<std::int32_t>(below(random, 10));
    limits.slots = 1 + static_cast<std::int32_t>(below(random, 6));
    limits.chunk_tokens = 1 + static_cast<std::int32_t>(below(random, 100));
    limits.in_flight = 1 + static_cast<std::int32_t>(below(random, 5));
    limits.hold_decode = below(random, 4) == 0;
    Scheduler scheduler(limits);
    Stages stages(limits, random);
    const std::int64_t count = 1 + below(random, 20);
    std::int64_t added = 0;
    std::map<std::int64_t, Sample> finished;
    int steps = 0;
    while (!(added == count && scheduler.idle())) {
      REQUIRE(++steps < 100000);
      while (added < count && scheduler.wants_requests()) {
        scheduler.add(
            request_of(added++, 1 + static_cast<std::int32_t>(below(random, static_cast<unsigned>(limits.n_positions))),
                       1 + static_cast<std::int32_t>(below(random, 40))));
      }
      std::optional<Microbatch> m;
      if (below(random, 3) != 0) m = scheduler.next();
      if (m) stages.take(*m);
      if (!stages.empty() && (!m || below(random, 2) == 0)) {
        for (Scheduler::Finished& done : scheduler.complete(stages.answer()).finished) {
          REQUIRE(finished.emplace(done.sample.index, done.sample).second);
          const Sample& s = done.sample;
          const auto generated = static_cast<std::int32_t>(s.tokens.size());
          CHECK(generated <= done.request.max_new_tokens);
          CHECK(s.prompt_tokens + generated <= limits.n_positions + 1);
          if (s.finish == FinishReason::kEos) {
            CHECK(s.tokens.back() == limits.eos);
          } else {
            CHECK((generated == done.request.max_new_tokens || s.prompt_tokens + generated == limits.n_positions + 1));
          }
        }
      }
    }
    CHECK(static_cast<std::int64_t>(finished.size()) == count);
    CHECK(scheduler.free_pages() == limits.pages);
    CHECK(scheduler.in_flight() == 0);
  }
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
