#include <doctest/doctest.h>

#include <algorithm>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "runtime/stop_strings.hpp"

using stagecoach::StopStrings;

namespace {

struct Outcome {
  std::string text;
  bool stopped;
  bool operator==(const Outcome&) const = default;
};

// Byte by byte: the text ends where any stop string is complete; the longest wins.
Outcome expected(const std::vector<std::string>& stops, const std::string& text) {
  for (std::size_t end = 1; end <= text.size(); ++end) {
    std::size_t longest = 0;
    for (const std::string& stop : stops) {
      if (std::string_view(text).substr(0, end).ends_with(stop)) longest = std::max(longest, stop.size());
    }
    if (longest > 0) return {text.substr(0, end - longest), true};
  }
  return {text, false};
}

}  // namespace

TEST_CASE("text ends before the stop string, wherever the pieces are cut") {
  std::mt19937 random(std::random_device{}());
  const auto below = [&](std::size_t bound) { return random() % bound; };
  const auto word = [&](std::size_t length) {
    std::string w;
    while (w.size() < length) w += static_cast<char>('a' + below(3));
    return w;
  };
  for (int round = 0; round < 20000; ++round) {
    std::vector<std::string> stops;
    for (std::size_t i = below(4); i > 0; --i) stops.push_back(word(1 + below(5)));
    const std::string text = word(below(30));
    StopStrings finder(stops);
    std::string given;
    for (std::size_t at = 0; at < text.size() && !finder.stopped();) {
      const std::size_t length = below(4);
      given += finder.push(std::string_view(text).substr(at, length));
      at += length;
      // Nothing is given that a stop string could still take back.
      if (!finder.stopped()) {
        const std::string so_far = text.substr(0, std::min(at, text.size()));
        CHECK(so_far.starts_with(given));
      }
    }
    if (!finder.stopped()) given += finder.finish();
    CHECK(Outcome{given, finder.stopped()} == expected(stops, text));
    CHECK(finder.text_bytes() == static_cast<std::int64_t>(given.size()));
    if (finder.stopped()) CHECK(finder.push("more").empty());
  }
}

TEST_CASE("only what may begin a stop string is held back") {
  StopStrings finder({"\n\n", "END"});
  CHECK(finder.push("a\n") == "a");
  CHECK(finder.push("b") == "\nb");
  CHECK(finder.push("E") == "");
  CHECK(finder.push("N") == "");
  CHECK(finder.push("E") == "EN");
  CHECK(finder.finish() == "E");
  StopStrings none;
  CHECK(none.push("x") == "x");
  CHECK_THROWS_AS(StopStrings({"a", ""}), std::invalid_argument);
}
