// Log-probabilities of documents are those of Hugging Face transformers in float64, also where a document is longer
// than the model's positions and is cut into windows.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <optional>
#include <random>

#include "runtime/scoring.hpp"
#include "tests/golden/golden_json.hpp"
#include "tests/pipeline/harness.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

namespace fs = std::filesystem;

// Largest allowed |ours - theirs|.
constexpr double kTolerance = 1e-4;

struct Document {
  std::vector<std::int32_t> tokens;
  std::optional<std::int32_t> stride;  // none: one window holds all tokens, whatever the stride
  std::vector<double> logprobs;        // [0] means nothing
};

std::vector<Document> read_documents(const fs::path& path) {
  const Json root = read_json(path);
  std::vector<Document> documents;
  for (const Json& item : *root.array()) {
    Document& document = documents.emplace_back();
    document.tokens = ids(*item.find("tokens"));
    if (const std::int64_t* stride = item.find("stride")->integer()) {
      document.stride = static_cast<std::int32_t>(*stride);
    }
    for (const Json& value : *item.find("logprobs")->array()) {
      document.logprobs.push_back(value.is_null() ? 0.0 : number(value));
    }
  }
  return documents;
}

std::vector<fs::path> scored_models() {
  std::vector<fs::path> all;
  for (const fs::directory_entry& entry : fs::directory_iterator(STAGECOACH_SOURCE_DIR "/tests/golden/data")) {
    if (fs::exists(entry.path() / "score.json")) all.push_back(entry.path());
  }
  std::ranges::sort(all);
  return all;
}

// A request's tokens are `window` of a document.
struct Part {
  std::size_t document;
  ScoreWindow window;
};

Request request_for(const Document& document, const ScoreWindow& window, std::size_t index) {
  Request request;
  request.index = static_cast<std::int64_t>(index);
  request.tokens.assign(document.tokens.begin() + window.begin, document.tokens.begin() + window.end);
  request.max_new_tokens = 1;
  request.logprobs = true;
  request.score_from = window.score_from;
  return request;
}

}  // namespace

TEST_CASE("documents' log-probabilities are those of Hugging Face, every token but the first scored once") {
  const std::uint64_t seed = std::random_device{}();
  INFO("seed ", seed);
  Random random(seed);
  const std::vector<fs::path> models = scored_models();
  REQUIRE(models.size() >= 20);
  for (const fs::path& directory : models) {
    INFO(directory.filename().string());
    const Model model = open_model(directory.string());
    const std::int32_t n_positions = model.config.n_positions;
    const std::vector<Document> documents = read_documents(directory / "score.json");
    Job job;
    job.model = directory.string();
    job.dtype = model.dtype;
    std::vector<Part> parts;
    for (std::size_t d = 0; d < documents.size(); ++d) {
      const Document& document = documents[d];
      const auto tokens = static_cast<std::int64_t>(document.tokens.size());
      REQUIRE(document.logprobs.size() == document.tokens.size());
      const auto any_stride = static_cast<std::int32_t>(draw(random, 1, n_positions - 1));
      const std::int32_t stride = document.stride.value_or(any_stride);
      const std::int64_t windows = score_window_count(tokens, n_positions, stride);
      INFO("document ", d);
      if (!document.stride) CHECK(windows == (tokens > 1 ? 1 : 0));
      for (std::int64_t w = 0; w < windows; ++w) {
        const ScoreWindow window = score_window(tokens, n_positions, stride, w);
        REQUIRE(window.begin >= 0);
        REQUIRE(window.end <= tokens);
        REQUIRE(window.end - window.begin <= n_positions);
        REQUIRE(window.score_from >= 1);
        REQUIRE(window.score_from < window.end - window.begin);
        job.requests.push_back(request_for(document, window, parts.size()));
        parts.push_back({d, window});
      }
    }

    const auto stages = static_cast<std::int32_t>(draw(random, 1, model.config.n_layer));
    const Layout layout = random_layout(random, job, stages);
    INFO(layout.describe());
    const std::vector<Sample> samples = run_loopback(job, plain_layout(job));
    CHECK(difference(samples, run_loopback(job, layout)) == "");

    std::vector<std::vector<int>> times_scored;
    for (const Document& document : documents) times_scored.emplace_back(document.tokens.size(), 0);
    double worst = 0.0;
    for (std::size_t i = 0; i < parts.size(); ++i) {
      const auto& [d, window] = parts[i];
      CHECK(samples[i].tokens.empty());
      const auto first = static_cast<std::size_t>(window.begin + window.score_from);
      REQUIRE(samples[i].logprobs.size() == static_cast<std::size_t>(window.end) - first);
      for (std::size_t t = 0; t < samples[i].logprobs.size(); ++t) {
        const double error = std::abs(static_cast<double>(samples[i].logprobs[t]) - documents[d].logprobs[first + t]);
        worst = std::max(worst, std::isnan(error) ? INFINITY : error);
        ++times_scored[d][first + t];
      }
    }
    CHECK(worst <= kTolerance);
    for (const std::vector<int>& times : times_scored) {
      CHECK(times.front() == 0);
      CHECK(std::all_of(times.begin() + 1, times.end(), [](int count) { return count == 1; }));
    }
  }
}
