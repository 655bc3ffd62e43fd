#include <doctest/doctest.h>

#include "launch/progress.hpp"

using namespace stagecoach;

TEST_CASE("progress tells what is done, how fast, and how long the rest takes") {
  CHECK(progress_text({12, 100, 480, 5.0}, "prompts") == "12 of 100 prompts, 480 tokens, 96.0 tokens/s, 37 s left");
  CHECK(progress_text({1, 3, 10, 90.0}, "files") == "1 of 3 files, 10 tokens, 0.1 tokens/s, 3 min left");
}

TEST_CASE("progress guesses nothing before the first prompt and after the last") {
  CHECK(progress_text({0, 100, 0, 5.0}, "prompts") == "0 of 100 prompts, 0 tokens, 0.0 tokens/s");
  CHECK(progress_text({0, 0, 0, 0.0}, "prompts") == "0 of 0 prompts, 0 tokens, 0.0 tokens/s");
  CHECK(progress_text({7, 7, 70, 7.0}, "prompts") == "7 of 7 prompts, 70 tokens, 10.0 tokens/s");
}

TEST_CASE("durations in two units at most, rounded up") {
  CHECK(duration_text(-1.0) == "0 s");
  CHECK(duration_text(0.0) == "0 s");
  CHECK(duration_text(0.1) == "1 s");
  CHECK(duration_text(59.0) == "59 s");
  CHECK(duration_text(59.1) == "1 min");
  CHECK(duration_text(61.0) == "2 min");
  CHECK(duration_text(3600.0) == "1 h 0 min");
  CHECK(duration_text(12001.0) == "3 h 21 min");
  CHECK(duration_text(47 * 3600.0 + 59 * 60.0) == "47 h 59 min");
  CHECK(duration_text(48 * 3600.0) == "2 d 0 h");
  CHECK(duration_text(1e300).size() < 30);
}
