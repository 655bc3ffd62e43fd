// Golden models: a model directory with golden.json, and how far our logits are from those that it records.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "runtime/kv_cache.hpp"
#include "tests/golden/golden_json.hpp"
#include "tests/pipeline/harness.hpp"

namespace stagecoach::test {

// Largest allowed |ours - theirs| over the largest |theirs| of the row.
constexpr double kTolerance = 2e-4;

struct Golden {
  std::filesystem::path directory;
  std::vector<std::vector<std::int32_t>> prompts;
  std::vector<std::vector<std::vector<double>>> logits;  // per prompt, its last positions
  std::vector<std::vector<std::int32_t>> greedy;
};

inline Golden read_golden(const std::filesystem::path& directory) {
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

// The golden models in `folder`.
inline std::vector<Golden> all_golden(const std::filesystem::path& folder) {
  std::vector<Golden> all;
  for (const std::filesystem::directory_entry& entry : std::filesystem::directory_iterator(folder)) {
    if (std::filesystem::exists(entry.path() / "golden.json")) all.push_back(read_golden(entry.path()));
  }
  std::ranges::sort(all, {}, &Golden::directory);
  return all;
}

// Worst relative difference of all rows of all prompts, one stage, the prompt in one microbatch.
inline double worst_difference(const Golden& golden, std::unique_ptr<Backend> backend, const std::string& name) {
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

}  // namespace stagecoach::test
