#include "runtime/silence.hpp"

#include <doctest/doctest.h>

#include <thread>

using namespace stagecoach;

namespace {

void pass(int milliseconds) {
  std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
}

}  // namespace

TEST_CASE("silence counts while somebody listens") {
  constexpr double kLimit_s = 0.4;
  const auto start = Listening::Clock::now();
  Listening listening;
  while (!listening.too_long(kLimit_s)) pass(5);
  CHECK(std::chrono::duration<double>(Listening::Clock::now() - start).count() >= kLimit_s);
  listening.heard();
  CHECK(!listening.too_long(kLimit_s));
}

TEST_CASE("time in which this process did not look is no silence of others") {
  constexpr double kLimit_s = 0.2;
  Listening listening;
  for (int i = 0; i < 4; ++i) {
    pass(300);
    CHECK(!listening.too_long(kLimit_s));
  }
}

TEST_CASE("signs come at least sixteen times within the limit, and twice in a second") {
  using Seconds = std::chrono::duration<double>;
  CHECK(Seconds(sign_interval(3.2)).count() == doctest::Approx(0.2));
  CHECK(Seconds(sign_interval(60.0)).count() == doctest::Approx(0.5));
}
