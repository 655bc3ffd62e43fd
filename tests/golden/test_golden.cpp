// Every checkpoint under data/ gives the logits and greedy tokens that Hugging Face transformers computed in float64.
#include <doctest/doctest.h>
#include <fmt/format.h>
#include <unistd.h>

#include <filesystem>

#include "runtime/native_model.hpp"
#include "tests/golden/golden_model.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace fs = std::filesystem;

TEST_CASE("logits are those of Hugging Face") {
  const std::vector<Golden> all = all_golden(STAGECOACH_SOURCE_DIR "/tests/golden/data");
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
  for (const Golden& golden : all_golden(STAGECOACH_SOURCE_DIR "/tests/golden/data")) {
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
