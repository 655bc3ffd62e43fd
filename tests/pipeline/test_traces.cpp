// What stages say they did: every microbatch on every stage, one thing at a time, causes before effects.
#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <random>

#include "tests/pipeline/harness.hpp"
#include "tests/rounds.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

std::vector<TraceEvent> events_of(const TraceBuffer& buffer, Activity activity) {
  std::vector<TraceEvent> events;
  for (std::size_t i = 0; i < buffer.pieces(); ++i) {
    for (const TraceEvent& event : buffer.piece(i)) {
      if (event.activity == activity) events.push_back(event);
    }
  }
  return events;
}

std::int64_t end_of(const TraceEvent& event) {
  return event.start_ns + event.duration_ns;
}

// No two events of a lane at the same time.
void check_lanes(const TraceBuffer& buffer) {
  std::map<std::uint16_t, std::vector<TraceEvent>> lanes;
  for (std::size_t i = 0; i < buffer.pieces(); ++i) {
    for (const TraceEvent& event : buffer.piece(i)) lanes[event.lane].push_back(event);
  }
  for (auto& [lane, events] : lanes) {
    CAPTURE(lane);
    std::ranges::sort(events, {}, &TraceEvent::start_ns);
    for (std::size_t i = 0; i < events.size(); ++i) {
      REQUIRE(events[i].duration_ns >= 0);
      if (i > 0) REQUIRE(end_of(events[i - 1]) <= events[i].start_ns);
    }
  }
}

}  // namespace

TEST_CASE("traces of random layouts: every microbatch on every stage, in order, causes first") {
  const std::uint64_t seed = std::random_device{}();
  Random random(seed);
  const int most = rounds(20);
  for (int round = 0; round < most; ++round) {
    const auto stages = static_cast<std::int32_t>(draw(random, 1, 4));
    const Job job = random_job(random, stages);
    Layout layout = random_layout(random, job, stages);
    INFO("seed " << seed << " round " << round << " model " << job.model << " layout " << layout.describe());
    const std::vector<Sample> expected = run_loopback(job, layout);
    std::vector<TraceBuffer> traces(static_cast<std::size_t>(stages));
    layout.traces = &traces;
    CHECK(difference(expected, run_loopback(job, layout)) == "");

    const std::vector<TraceEvent> first = events_of(traces.front(), Activity::kCompute);
    CHECK(first.size() > 0);
    std::int64_t prefill = 0, decode = 0;
    for (const TraceEvent& event : first) {
      prefill += event.prefill_rows;
      decode += event.rows - event.prefill_rows;
    }
    // A sample's last token is not fed; what had to give up its pages feeds all once more.
    std::int64_t new_rows = 0;
    for (const Sample& sample : expected) {
      if (!sample.tokens.empty()) new_rows += static_cast<std::int64_t>(sample.tokens.size()) - 1;
    }
    CHECK(decode <= new_rows);
    CHECK(prefill + decode > new_rows);

    for (std::size_t s = 0; s < traces.size(); ++s) {
      CAPTURE(s);
      check_lanes(traces[s]);
      const std::vector<TraceEvent> computed = events_of(traces[s], Activity::kCompute);
      const std::vector<TraceEvent> sent = events_of(traces[s], Activity::kSend);
      const std::vector<TraceEvent> received = events_of(traces[s], Activity::kReceive);
      REQUIRE(computed.size() == first.size());
      REQUIRE(sent.size() == (s + 1 < traces.size() ? first.size() : 0));
      REQUIRE(received.size() == (s > 0 ? first.size() : 0));
      for (std::size_t i = 0; i < computed.size(); ++i) {
        REQUIRE(computed[i].microbatch == i + 1);
        REQUIRE(computed[i].rows == first[i].rows);
        REQUIRE(computed[i].prefill_rows == first[i].prefill_rows);
        if (s == 0) continue;
        const std::vector<TraceEvent> before = events_of(traces[s - 1], Activity::kSend);
        const auto cause = std::ranges::find(before, computed[i].microbatch, &TraceEvent::microbatch);
        const auto arrival = std::ranges::find(received, computed[i].microbatch, &TraceEvent::microbatch);
        REQUIRE(cause != before.end());
        REQUIRE(arrival != received.end());
        REQUIRE(cause->start_ns <= end_of(*arrival));
        REQUIRE(end_of(*arrival) <= computed[i].start_ns);
      }
    }
  }
}
