// What is said while a run goes on.
#pragma once

#include <cstdint>
#include <string>

namespace stagecoach {

struct ProgressCounts {
  std::int64_t done = 0;  // of `total` prompts, files or the like
  std::int64_t total = 0;
  std::int64_t tokens = 0;  // generated or scored
  double seconds = 0.0;     // since the start
  // Of these, what was there before the start.
  std::int64_t found = 0;
  std::int64_t found_tokens = 0;
};

// "12 of 100 prompts, 480 tokens, 96.0 tokens/s, 37 s left". The time left assumes that the rest takes as long per
// prompt as what is done, and is left out before anything is done and after everything.
std::string progress_text(const ProgressCounts& counts, const std::string& unit);

// To two units at most: "37 s", "12 min", "3 h 20 min", "5 d 2 h". Rounded up to whole seconds, then minutes, hours.
std::string duration_text(double seconds);

}  // namespace stagecoach
