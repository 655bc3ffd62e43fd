// Hugging Face's logits and tokens on the CUDA backend, over 1 to 4 stages.
#include "tests/cuda/cuda_backends.hpp"
#include "tests/golden/golden_model.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

const char* const kData = STAGECOACH_SOURCE_DIR "/tests/golden/data";

// What rounding activations to the weights' dtype may change, as a share of the largest logit: some roundings of each
// block's rows.
double tolerance(DType dtype) {
  return dtype == DType::kFloat32 ? kTolerance : dtype == DType::kFloat16 ? 16 * 0x1p-11 : 16 * 0x1p-8;
}

}  // namespace

TEST_CASE("logits are those of Hugging Face") {
  const std::vector<Golden> all = all_golden(kData);
  REQUIRE(all.size() >= 20);
  for (const Golden& golden : all) {
    const std::string name = golden.directory.string();
    const DType dtype = open_model(name).dtype;
    INFO(name << " " << name_of(dtype));
    CHECK(worst_difference(golden, cuda_backend(), name) < tolerance(dtype));
    CHECK(worst_difference(golden, deterministic_cuda_backend(), name) < tolerance(dtype));
  }
}

TEST_CASE("greedy continuations are those of Hugging Face over 1 to 4 stages") {
  std::random_device seed;
  Random random(seed());
  for (const Golden& golden : all_golden(kData)) {
    INFO(golden.directory.filename().string());
    const Model model = open_model(golden.directory.string());
    Job job;
    job.model = golden.directory.string();
    job.dtype = DType::kFloat32;  // 16-bit activations may choose otherwise where two logits are close
    for (std::size_t p = 0; p < golden.prompts.size(); ++p) {
      Request request;
      request.index = static_cast<std::int64_t>(p);
      request.tokens = golden.prompts[p];
      request.max_new_tokens = static_cast<std::int32_t>(golden.greedy[p].size());
      request.ignore_eos = true;
      job.requests.push_back(request);
    }
    Layout layout =
        random_layout(random, job, static_cast<std::int32_t>(draw(random, 1, std::min(4, model.config.n_layer))));
    layout.backend = cuda_backend;
    INFO(layout.describe());
    for (const Sample& sample : run_loopback(job, layout)) {
      const auto& theirs = golden.greedy[static_cast<std::size_t>(sample.index)];
      REQUIRE(!sample.tokens.empty());
      REQUIRE(sample.tokens.size() <= theirs.size());
      CHECK(sample.tokens ==
            std::vector(theirs.begin(), theirs.begin() + static_cast<std::ptrdiff_t>(sample.tokens.size())));
    }
  }
}
