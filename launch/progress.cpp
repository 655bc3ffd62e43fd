#include "launch/progress.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace stagecoach {

std::string duration_text(double seconds) {
  constexpr double kMost = 1e14;  // three million years
  const auto whole = static_cast<std::int64_t>(std::ceil(std::clamp(seconds, 0.0, kMost)));
  if (whole < 60) return fmt::format("{} s", whole);
  const std::int64_t minutes = (whole + 59) / 60;
  if (minutes < 60) return fmt::format("{} min", minutes);
  if (minutes < 48 * 60) return fmt::format("{} h {} min", minutes / 60, minutes % 60);
  const std::int64_t hours = (minutes + 59) / 60;
  return fmt::format("{} d {} h", hours / 24, hours % 24);
}

std::string progress_text(const ProgressCounts& counts, const std::string& unit) {
  const double rate =
      counts.seconds > 0.0 ? static_cast<double>(counts.tokens - counts.found_tokens) / counts.seconds : 0.0;
  std::string text =
      fmt::format("{} of {} {}, {} tokens, {:.1f} tokens/s", counts.done, counts.total, unit, counts.tokens, rate);
  const std::int64_t done_now = counts.done - counts.found;
  if (done_now > 0 && counts.done < counts.total) {
    const double each = counts.seconds / static_cast<double>(done_now);
    text += fmt::format(", {} left", duration_text(each * static_cast<double>(counts.total - counts.done)));
  }
  return text;
}

}  // namespace stagecoach
