// Every checkpoint under data/ gives the logits and greedy tokens that Hugging Face transformers computed in float64.
#include <doctest/doctest.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "runtime/kv_cache.hpp"
#include "runtime/native_model.hpp"
#include "tests/golden/golden_json.hpp"
#include "tests/pipeline/harness.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

namespace fs = std::filesystem;

// Largest allowed |ours - theirs| over the largest |theirs| of the row.
constexpr double kTolerance = 2e-4;

struct Golden {
  fs::path directory;
  std::vector<std::vector<std::int32_t>> prompts;
  std::vector<std::vector<std::vector<double>>> logits;  // per prompt, its last positions
  std::vector<std::vector<std::int32_t>> greedy;
};

Golden read_golden(const fs::path& directory) {
  const Json root = read_json(directory / "golden.json");
  Golden golden;
  golden.directory = directory;
  for (const Json& prompt : *root.find("prompts")->array()) golden.prompts.push_back(ids(prompt));
  for (const Json& tokens : *root.find("greedy")->array()) golden.greedy.push_back(ids(tokens));
  for (const Json& rows : *root.find("logits")->array()) {
    auto& into = golden.logits.emplace_back();
    for (const Json& row : *rows.array()) {
      auto& values = into.emplace_back();
      for (const Json& value : *row.array()) values.push_back(number(value));
    }
  }
  return golden;
}

std::vector<Golden> all_golden() {
  std::vector<Golden> all;
  for (const fs::directory_entry& entry : fs::directory_iterator(STAGECOACH_SOURCE_DIR "/tests/golden/data")) {
    if (fs::exists(entry.path() / "golden.json")) all.push_back(read_golden(entry.path()));
  }
  std::ranges::sort(all, {}, &Golden::directory);
  return all;
}

// Worst relative difference of all rows of all prompts, one stage, the prompt in one microbatch.
double worst_difference(const Golden& golden, std::unique_ptr<Backend> backend, const std::string& name) {
  const Model model = open_model(name);
  const BlockRange all{0, model.config.n_layer - 1};
  const StageLimits limits{model.config.n_positions, pages_for(model.config.n_positions), 1, DType::kFloat32};
  StageExecutor executor(*backend, model.config, all,
                         load_stage(*backend, *model.weights, model.config, all, model.dtype, {}), limits);
  const Buffer residual = backend->allocate(std::int64_t{model.config.n_positions} * model.config.n_embd * 4);
  double worst = 0.0;
  for (std::size_t p = 0; p < golden.prompts.size(); ++p) {
    const std::vector<std::int32_t>& prompt = golden.prompts[p];
    const std::size_t first = prompt.size() - golden.logits[p].size();
    Microbatch m;
    m.id = p + 1;
    SlotCommand pages{SlotCommand::Kind::kAppendPages, 0, {}};
    for (std::int32_t i = 0; i < pages_for(static_cast<std::int64_t>(prompt.size())); ++i) pages.pages.push_back(i);
    m.commands = {{SlotCommand::Kind::kDrop, 0, {}}, pages};
    for (std::size_t t = 0; t < prompt.size(); ++t) {
      m.rows.push_back({prompt[t], 0, static_cast<std::int32_t>(t), t >= first ? kRowSample : 0U});
    }
    executor.run(
        m, make_tensor(residual.data(), DType::kFloat32, static_cast<std::int64_t>(prompt.size()), model.config.n_embd),
        [] {});
    const std::span<const float> ours = executor.last_logits();
    const auto vocab = static_cast<std::size_t>(model.config.vocab_size);
    REQUIRE(ours.size() == golden.logits[p].size() * vocab);
    for (std::size_t row = 0; row < golden.logits[p].size(); ++row) {
      const std::vector<double>& theirs = golden.logits[p][row];
      REQUIRE(theirs.size() == vocab);
      double scale = 0.0, difference = 0.0;
      for (std::size_t i = 0; i < vocab; ++i) {
        scale = std::max(scale, std::abs(theirs[i]));
        difference = std::max(difference, std::abs(theirs[i] - ours[row * vocab + i]));
      }
      worst = std::max(worst, difference / scale);
    }
  }
  return worst;
}

}  // namespace

TEST_CASE("logits are those of Hugging Face") {
  const std::vector<Golden> all = all_golden();
  REQUIRE(all.size() >= 20);
  for (const Golden& golden : all) {
    INFO(golden.directory.filename().string());
    const std::string name = golden.directory.string();
    const double worst = worst_difference(golden, make_cpu_backend({1, Simd::kBest}), name);
    CHECK(worst < kTolerance);
    CHECK(worst_difference(golden, make_reference_backend(), name) < kTolerance);
    const std::string converted =
        (fs::temp_directory_path() / fmt::format("stagecoach-golden-{}.h5", ::getpid())).string();
    write_native_model(open_model(name), {}, {}, converted, {});
    CHECK(worst_difference(golden, make_cpu_backend({1, Simd::kBest}), converted) == worst);
    fs::remove(converted);
  }
}

TEST_CASE("greedy continuations are those of Hugging Face, over one stage and over several") {
  std::random_device seed;
  Random random(seed());
  for (const Golden& golden : all_golden()) {
    INFO(golden.directory.filename().string());
    const Model model = open_model(golden.directory.string());
    Job job;
    job.model = golden.directory.string();
    job.dtype = model.dtype;
    for (std::size_t p = 0; p < golden.prompts.size(); ++p) {
      Request request;
      request.index = static_cast<std::int64_t>(p);
      request.tokens = golden.prompts[p];
      request.max_new_tokens = static_cast<std::int32_t>(golden.greedy[p].size());
      request.ignore_eos = true;
      job.requests.push_back(request);
    }
    const auto stages = static_cast<std::int32_t>(draw(random, 1, model.config.n_layer));
    for (const Layout& layout : {plain_layout(job), random_layout(random, job, stages)}) {
      const std::vector<Sample> samples = run_loopback(job, layout);
      for (std::size_t p = 0; p < samples.size(); ++p) {
        // A continuation ends early where the model's positions do.
        const std::size_t count = samples[p].tokens.size();
        CHECK(count ==
              std::min<std::size_t>(golden.greedy[p].size(),
                                    static_cast<std::size_t>(model.config.n_positions) + 1 - golden.prompts[p].size()));
        CHECK(samples[p].tokens ==
              std::vector(golden.greedy[p].begin(), golden.greedy[p].begin() + static_cast<std::ptrdiff_t>(count)));
      }
    }
  }
}
