#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <random>
#include <thread>
#include <utility>

#include "runtime/scheduler.hpp"
#include "runtime/stage_trace.hpp"

using namespace stagecoach;

namespace {

Microbatch microbatch_of(std::uint64_t id, std::int32_t rows) {
  Microbatch microbatch;
  microbatch.id = id;
  microbatch.rows.resize(static_cast<std::size_t>(rows));
  return microbatch;
}

void pass_time() {
  std::this_thread::sleep_for(std::chrono::milliseconds(2));
}

std::vector<TraceEvent> events_of(const TraceBuffer& buffer) {
  std::vector<TraceEvent> events;
  for (std::size_t i = 0; i < buffer.pieces(); ++i) {
    events.insert(events.end(), buffer.piece(i).begin(), buffer.piece(i).end());
  }
  return events;
}

}  // namespace

TEST_CASE("a trace keeps the first events, in order, and counts the rest") {
  for (const std::int64_t most :
       {std::int64_t{0}, std::int64_t{1}, TraceBuffer::kPieceEvents, 2 * TraceBuffer::kPieceEvents + 7}) {
    CAPTURE(most);
    for (const std::int64_t given : {std::int64_t{0}, most, most + 3}) {
      CAPTURE(given);
      TraceBuffer buffer(most);
      for (std::int64_t i = 0; i < given; ++i) {
        TraceEvent event;
        event.start_ns = i;
        buffer.add(event);
      }
      CHECK(buffer.size() == std::min(most, given));
      CHECK(buffer.dropped() == given - buffer.size());
      const std::vector<TraceEvent> events = events_of(buffer);
      CHECK(static_cast<std::int64_t>(events.size()) == buffer.size());
      for (std::size_t i = 0; i < events.size(); ++i) REQUIRE(events[i].start_ns == static_cast<std::int64_t>(i));
      for (std::size_t i = 0; i + 1 < buffer.pieces(); ++i) {
        CHECK(static_cast<std::int64_t>(buffer.piece(i).size()) == TraceBuffer::kPieceEvents);
      }
    }
  }
}

TEST_CASE("rows of prompts are told from those of new tokens, through chunks, shared prompts and reused slots") {
  const unsigned seed = std::random_device()();
  CAPTURE(seed);
  std::mt19937 random(seed);
  PrefillCounter counter;  // over all rounds: each has a scheduler of its own, as the repeats of a measurement do
  const auto below = [&](unsigned bound) { return static_cast<std::int32_t>(random() % bound); };
  for (int round = 0; round < 50; ++round) {
    const std::int32_t prompt = 1 + below(40);  // of all requests, so that a row's position says what it is
    SchedulerLimits limits;
    limits.n_positions = 100;
    limits.pages = 60;
    limits.slots = 1 + below(5);
    limits.chunk_tokens = 1 + below(20);
    limits.in_flight = 1 + below(3);
    Scheduler scheduler(limits);
    std::int32_t left = 12;
    std::deque<TokenBatch> answers;
    while (left > 0 || !scheduler.idle()) {
      while (left > 0 && scheduler.wants_requests()) {
        Request request;
        request.index = --left;
        request.tokens.assign(static_cast<std::size_t>(prompt), 1);
        request.max_new_tokens = 1 + below(10);
        request.num_samples = 1 + below(3);
        if (below(4) == 0) {
          request.num_samples = 1;
          request.score_from = prompt > 1 ? 1 : 0;
        }
        scheduler.add(std::move(request));
      }
      if (const std::optional<Microbatch> microbatch = scheduler.next()) {
        std::int32_t expected = 0;
        TokenBatch& answer = answers.emplace_back();
        answer.id = microbatch->id;
        for (const Row& row : microbatch->rows) {
          if (row.position < prompt) ++expected;
          if (wants_logits(row)) answer.tokens.push_back({row.slot, 5, 0.0F});
        }
        REQUIRE(counter.count(*microbatch) == expected);
      } else {
        REQUIRE(!answers.empty());
        scheduler.complete(answers.front());
        answers.pop_front();
      }
    }
    REQUIRE(scheduler.times_put_back() == 0);  // what was generated would be fed again
  }
}

TEST_CASE("a stage's times add up to the time from its first microbatch to the end of its last") {
  for (const bool traced : {true, false}) {
    TraceBuffer buffer;
    StageClock clock(traced ? &buffer : nullptr);
    pass_time();  // before the first: counts for nothing
    std::int64_t begin = 0, end = 0;
    for (std::uint64_t id = 1; id <= 3; ++id) {
      const std::int64_t scheduling = now_ns();
      pass_time();
      clock.scheduled(scheduling, id);
      if (id == 1) begin = now_ns();
      clock.begin_compute(microbatch_of(id, 4));
      pass_time();
      if (id == 2) {
        clock.rows_arrived();  // so far it waited
        pass_time();
      }
      clock.end_compute();
      end = now_ns();
      pass_time();
    }
    clock.scheduled(now_ns(), 3);  // after the last: likewise
    const StageTimes& times = clock.times();
    const std::int64_t sum = times.busy_ns + times.schedule_ns + times.idle_ns;
    CHECK(sum <= end - begin);
    CHECK(sum >= end - begin - 1'000'000);
    CHECK(times.busy_ns >= 6'000'000);
    CHECK(times.schedule_ns >= 4'000'000);
    CHECK(times.idle_ns >= 6'000'000);
    if (!traced) {
      CHECK(clock.trace() == nullptr);
      continue;
    }

    StageTimes kept;
    int computed = 0;
    std::int64_t before = 0;
    for (const TraceEvent& event : events_of(buffer)) {
      CHECK(event.start_ns >= before);
      before = event.start_ns + event.duration_ns;
      CHECK(event.lane == kLoopLane);
      if (event.activity == Activity::kCompute) {
        kept.busy_ns += event.duration_ns;
        CHECK(event.microbatch == static_cast<std::uint32_t>(++computed));
        CHECK(event.rows == 4);
        CHECK(event.prefill_rows == 4);
      }
      if (event.activity == Activity::kSchedule) kept.schedule_ns += event.duration_ns;
      if (event.activity == Activity::kWait) kept.idle_ns += event.duration_ns;
    }
    CHECK(computed == 3);
    CHECK(kept.busy_ns == times.busy_ns);
    CHECK(kept.schedule_ns > times.schedule_ns);  // with those before the first and after the last
    CHECK(kept.idle_ns > times.idle_ns);
  }
}
