#include "runtime/stop_strings.hpp"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace stagecoach {
namespace {

// Length of the longest end of `text` that begins `stop` and is shorter than it.
std::size_t partial_match(std::string_view text, std::string_view stop) {
  for (std::size_t n = std::min(text.size(), stop.size() - 1); n > 0; --n) {
    if (stop.starts_with(text.substr(text.size() - n))) return n;
  }
  return 0;
}

}  // namespace

StopStrings::StopStrings(std::vector<std::string> stops) : stops_(std::move(stops)) {
  for (const std::string& stop : stops_) {
    if (stop.empty()) throw std::invalid_argument("an empty stop string");
  }
}

std::string StopStrings::push(std::string_view bytes) {
  if (stopped_) return {};
  held_ += bytes;
  // What was held back before holds no whole stop string, so a match ends in the new bytes.
  std::size_t first_end = std::string::npos;
  std::size_t begin = 0;
  for (const std::string& stop : stops_) {
    const std::size_t found = held_.find(stop);
    if (found == std::string::npos) continue;
    const std::size_t end = found + stop.size();
    if (end < first_end || (end == first_end && found < begin)) {
      first_end = end;
      begin = found;
    }
  }
  std::string given;
  if (first_end != std::string::npos) {
    stopped_ = true;
    given = held_.substr(0, begin);
    held_.clear();
  } else {
    std::size_t keep = 0;
    for (const std::string& stop : stops_) keep = std::max(keep, partial_match(held_, stop));
    given = held_.substr(0, held_.size() - keep);
    held_.erase(0, held_.size() - keep);
  }
  given_ += static_cast<std::int64_t>(given.size());
  return given;
}

std::string StopStrings::finish() {
  given_ += static_cast<std::int64_t>(held_.size());
  return std::exchange(held_, {});
}

}  // namespace stagecoach
