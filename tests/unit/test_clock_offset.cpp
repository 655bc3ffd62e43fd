#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <random>

#include "runtime/clock_offset.hpp"

using namespace stagecoach;

TEST_CASE("a peer's clock is found through jitter, no further off than stated") {
  const unsigned seed = std::random_device()();
  CAPTURE(seed);
  std::mt19937_64 random(seed);
  for (int round = 0; round < 200; ++round) {
    const auto up_to = [&](std::int64_t bound) {
      return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(bound));
    };
    const std::int64_t truth = up_to(std::int64_t{2} << 60) - (std::int64_t{1} << 60);
    ClockOffset offset;
    CHECK_FALSE(offset.known());
    std::int64_t now = up_to(1'000'000'000), shortest = 1'000'000'000'000;
    for (int i = 0; i < 50; ++i) {
      // Either way: a least delay, and now and then one of a thousand times as much.
      const auto delay = [&] { return 2'000 + (up_to(10) < 3 ? up_to(20'000'000) : up_to(500)); };
      const std::int64_t there = delay(), back = delay();
      offset.add(now, now + there + truth, now + there + back);
      shortest = std::min(shortest, there + back);
      now += there + back + up_to(1'000'000);
    }
    CHECK(offset.known());
    CHECK(std::abs(offset.ahead_ns() - truth) <= offset.error_ns());
    CHECK(offset.error_ns() == (shortest + 1) / 2);
  }
}

TEST_CASE("messages that arrived before they were sent say nothing; one clock for both is found exactly") {
  ClockOffset offset;
  offset.add(100, 5000, 99);
  CHECK_FALSE(offset.known());
  CHECK(offset.ahead_ns() == 0);
  CHECK(offset.error_ns() == 0);
  offset.add(100, 107, 114);
  CHECK(offset.known());
  CHECK(offset.ahead_ns() == 0);
  CHECK(offset.error_ns() == 7);
  offset.add(200, 290, 300);  // longer: passed over
  CHECK(offset.ahead_ns() == 0);
}

TEST_CASE("clocks that run apart are put right at both ends and evenly between") {
  // A million seconds on, and 50 us more at the end of a second.
  const ClockLine line{1'000'000'000'000'000'000, 1'000'000'001'000'050'000, 999'999'999'000'000'000,
                       999'999'999'000'050'000, 0};
  CHECK(line.ours(line.first_ns) == 1'000'000'000);
  CHECK(line.ours(line.last_ns) == 2'000'000'000);
  CHECK(std::abs(line.ours(1'000'000'000'500'025'000) - 1'500'000'000) <= 1);
  std::int64_t before = line.ours(line.first_ns - 1000);
  for (std::int64_t t = line.first_ns - 999; t < line.first_ns + 1000; ++t) {
    CHECK(line.ours(t) >= before);
    before = line.ours(t);
  }
  CHECK(ClockLine{5, 5, 3, 3, 0}.ours(10) == 7);  // compared once
  CHECK(ClockLine{}.ours(12) == 12);
}

TEST_CASE(
    "two comparisons make a line: a drift that they cannot tell is none, and the stated error holds at both ends") {
  const unsigned seed = std::random_device()();
  CAPTURE(seed);
  std::mt19937_64 random(seed);
  int level = 0, sloping = 0;
  for (int round = 0; round < 2000; ++round) {
    const auto up_to = [&](std::int64_t bound) {
      return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(bound));
    };
    const std::int64_t begin = up_to(1'000'000'000), end = begin + 300'000'000 + up_to(1'000'000'000);
    const std::int64_t truth_first = up_to(1'000'000'000'000), drift = up_to(3) == 0 ? up_to(4'000'000) : 0;
    const auto compared = [&](std::int64_t now, std::int64_t truth) {
      ClockOffset offset;
      const std::int64_t there = up_to(2'000'000), back = up_to(2'000'000);
      offset.add(now - there, now + truth, now + back);
      return offset;
    };
    const ClockOffset first = compared(begin, truth_first), last = compared(end, truth_first + drift);
    const ClockLine line = ClockLine::through(first, begin, last, end);
    CHECK(std::abs(line.ours(begin + truth_first) - begin) <= line.error_ns + 1);
    CHECK(std::abs(line.ours(end + truth_first + drift) - end) <= line.error_ns + 1);
    CHECK(line.error_ns <= 2 * std::max(first.error_ns(), last.error_ns()));
    if (drift == 0) CHECK(line.ahead_first == line.ahead_last);
    ++(line.ahead_first == line.ahead_last ? level : sloping);
  }
  CHECK(level > 1000);
  CHECK(sloping > 50);

  ClockOffset first, last;  // 10 +- 3 and 14 +- 2: 12 to 13
  first.add(0, 13, 6);
  last.add(100, 116, 104);
  const ClockLine line = ClockLine::through(first, 3, last, 102);
  CHECK(line.ahead_first == 12);
  CHECK(line.ahead_last == 12);
  CHECK(line.error_ns == 5);
}
