// The front desk: every prompt is handed out once and written in input order, whatever order its results come in, and
// no more of them are in memory than its bounds say.
#include <doctest/doctest.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <random>
#include <thread>

#include "runtime/front_desk.hpp"
#include "runtime/scoring.hpp"

using namespace stagecoach;

namespace {

struct Line {
  std::int64_t index;
  std::vector<std::int32_t> samples;
};

class ListSink final : public ResultSink {
 public:
  void write(const Request& request, std::span<const Sample> samples) override {
    Line line{request.index, {}};
    for (const Sample& sample : samples) line.samples.push_back(sample.sample);
    lines.push_back(line);
  }
  void finish() override { finished = true; }
  std::vector<Line> lines;
  bool finished = false;
};

// Token prompts in a file of its own.
class Prompts {
 public:
  explicit Prompts(const std::vector<std::vector<std::int32_t>>& prompts, std::int32_t n_positions, bool any_length) {
    char name[] = "/tmp/stagecoach-desk-XXXXXX.jsonl";
    const int file = mkstemps(name, 6);
    REQUIRE(file >= 0);
    close(file);
    path_ = name;
    std::ofstream out(path_);
    for (const auto& tokens : prompts) out << fmt::format("{{\"tokens\": [{}]}}\n", fmt::join(tokens, ","));
    out.close();
    PromptOptions options;
    options.n_positions = n_positions;
    options.vocab_size = 1000;
    options.any_length = any_length;
    options.max_new_tokens = 4;
    reader.emplace(PromptReader::from_file(path_, nullptr, options));
  }
  ~Prompts() { std::remove(path_.c_str()); }
  std::optional<PromptReader> reader;

 private:
  std::string path_;
};

std::vector<std::vector<std::int32_t>> random_prompts(std::mt19937& random, int count, int longest) {
  std::vector<std::vector<std::int32_t>> prompts(static_cast<std::size_t>(count));
  for (auto& tokens : prompts) tokens.resize(1 + random() % static_cast<unsigned>(longest), 7);
  return prompts;
}

Sample sample_of(const Request& request) {
  Sample sample;
  sample.index = request.index;
  sample.sample = request.first_sample;
  return sample;
}

// Takes what there is, gives results back in random order, and says how many requests it held at most.
std::size_t serve(FrontDesk& desk, std::mt19937& random, std::size_t at_once, std::vector<Request>& seen) {
  std::vector<Request> held;
  std::size_t most = 0;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!desk.exhausted() || !held.empty()) {
    REQUIRE(std::chrono::steady_clock::now() < deadline);
    std::optional<Request> request;
    if (held.size() < at_once) request = desk.next_request();
    if (request) {
      seen.push_back(*request);
      held.push_back(std::move(*request));
      most = std::max(most, held.size());
      continue;
    }
    if (held.empty() || (held.size() < at_once && random() % 4 != 0)) {
      std::this_thread::yield();
      continue;
    }
    const std::size_t i = random() % held.size();
    desk.deliver(sample_of(held[i]));
    held.erase(held.begin() + static_cast<std::ptrdiff_t>(i));
  }
  desk.finish();
  return most;
}

}  // namespace

TEST_CASE("every prompt once, results in input order, in any order of delivery") {
  const unsigned seed = std::random_device{}();
  INFO("seed " << seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 20; ++round) {
    const auto prompts = random_prompts(random, 1 + static_cast<int>(random() % 200), 50);
    Prompts file(prompts, 60, false);
    ListSink sink;
    FrontDeskBounds bounds;
    bounds.prompts = 1 + static_cast<std::int32_t>(random() % 8);
    bounds.n_positions = 60;
    FrontDesk desk(*file.reader, sink, {}, {}, bounds);
    std::vector<Request> seen;
    const std::size_t most = serve(desk, random, 1 + random() % 12, seen);
    CHECK(most <= static_cast<std::size_t>(bounds.prompts));
    REQUIRE(seen.size() == prompts.size());
    for (std::size_t i = 0; i < seen.size(); ++i) CHECK(seen[i].tokens == prompts[i]);
    CHECK(sink.finished);
    REQUIRE(sink.lines.size() == prompts.size());
    for (std::size_t i = 0; i < sink.lines.size(); ++i) {
      CHECK(sink.lines[i].index == static_cast<std::int64_t>(i));
      CHECK(sink.lines[i].samples == std::vector<std::int32_t>{0});
    }
  }
}

TEST_CASE("texts are handed out window by window, and those without any are written as well") {
  std::mt19937 random(std::random_device{}());
  std::vector<std::vector<std::int32_t>> texts = random_prompts(random, 30, 300);
  texts[3] = {1};  // nothing to score
  texts.back() = {1};
  Prompts file(texts, 16, true);
  ListSink sink;
  Split split;
  split.count = [](const Request& text) {
    return score_window_count(static_cast<std::int64_t>(text.tokens.size()), 16, 5);
  };
  split.part = [](const Request& text, std::int64_t i) { return window_request(text, 16, 5, i); };
  FrontDeskBounds bounds;
  bounds.bytes = 3000;
  FrontDesk desk(*file.reader, sink, {}, split, bounds);
  std::vector<Request> seen;
  serve(desk, random, 100, seen);
  REQUIRE(sink.lines.size() == texts.size());
  std::size_t windows = 0;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const std::int64_t count = score_window_count(static_cast<std::int64_t>(texts[i].size()), 16, 5);
    REQUIRE(static_cast<std::int64_t>(sink.lines[i].samples.size()) == count);
    for (std::int64_t w = 0; w < count; ++w) CHECK(sink.lines[i].samples[static_cast<std::size_t>(w)] == w);
    windows += static_cast<std::size_t>(count);
  }
  CHECK(seen.size() == windows);
}

TEST_CASE("bytes bound what is read ahead, and a prompt larger than the bound still passes") {
  std::mt19937 random(1);
  std::vector<std::vector<std::int32_t>> prompts(40);
  for (auto& tokens : prompts) tokens.resize(5000, 3);  // 20 kB each
  Prompts file(prompts, 6000, false);
  Request one;
  one.tokens = prompts[0];
  one.max_new_tokens = 4;
  const std::int64_t each = desk_bytes(one, {}, 6000);
  CHECK(each >= 20000);
  CHECK(each < 21000);
  for (const auto& [bytes, most] : {std::pair{each * 5 / 2, 3U}, {std::int64_t{1}, 1U}}) {
    ListSink sink;
    FrontDeskBounds bounds;
    bounds.bytes = bytes;
    bounds.n_positions = 6000;
    file.reader->check();  // rewinds
    FrontDesk desk(*file.reader, sink, {}, {}, bounds);
    std::vector<Request> seen;
    CHECK(serve(desk, random, 100, seen) <= most);
    CHECK(seen.size() == prompts.size());
    CHECK(sink.lines.size() == prompts.size());
  }
}

TEST_CASE("a desk that is left alone ends") {
  Prompts file({{1}, {2}, {3}}, 10, false);
  ListSink sink;
  { const FrontDesk desk(*file.reader, sink, {}, {}, {}); }
  CHECK_FALSE(sink.finished);
  CHECK(sink.lines.empty());
}
