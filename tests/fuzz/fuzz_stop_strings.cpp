// Stop strings over text in any pieces: what is given, what is held back and where the text ends are what a naive
// search of the whole text says, after every piece.
#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <string>
#include <vector>

#include "runtime/stop_strings.hpp"
#include "tests/fuzz/fuzz.hpp"

namespace {

struct Expected {
  bool stopped = false;
  std::size_t given = 0;  // bytes of the text
};

// The first byte at which any stop string is complete, the longest one there; otherwise all but the longest end of
// the text that begins a stop string.
Expected naive(const std::string& text, const std::vector<std::string>& stops) {
  for (std::size_t end = 1; end <= text.size(); ++end) {
    std::size_t longest = 0;
    for (const std::string& stop : stops) {
      if (std::string_view(text).substr(0, end).ends_with(stop)) longest = std::max(longest, stop.size());
    }
    if (longest > 0) return {true, end - longest};
  }
  std::size_t held = 0;
  for (const std::string& stop : stops) {
    for (std::size_t n = 1; n < stop.size(); ++n) {
      if (text.ends_with(std::string_view(stop).substr(0, n))) held = std::max(held, n);
    }
  }
  return {false, text.size() - held};
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using stagecoach::fuzz::require;
  if (size > 4096) return 0;  // the naive search is quadratic
  FuzzedDataProvider in(data, size);
  std::vector<std::string> stops(in.ConsumeIntegralInRange<std::size_t>(0, 4));
  for (std::string& stop : stops) {
    stop = in.ConsumeRandomLengthString(16);
    if (stop.empty()) stop = "a";
    for (char& c : stop) c = static_cast<char>(c & 3);  // few letters, so that they meet and overlap
  }
  stagecoach::StopStrings search(stops);
  std::string text, given;
  while (in.remaining_bytes() > 0) {
    std::string piece = in.ConsumeRandomLengthString(24);
    for (char& c : piece) c = static_cast<char>(c & 3);
    text += piece;
    given += search.push(piece);
    const Expected expected = naive(text, stops);
    require(search.stopped() == expected.stopped);
    require(given == text.substr(0, expected.given));
    require(search.text_bytes() == static_cast<std::int64_t>(given.size()));
  }
  given += search.finish();
  const Expected expected = naive(text, stops);
  require(given == (expected.stopped ? text.substr(0, expected.given) : text));
  return 0;
}
