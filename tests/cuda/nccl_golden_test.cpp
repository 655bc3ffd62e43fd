// Hugging Face's greedy continuations by CUDA stages as MPI ranks over NCCL. Usage: mpirun -n N nccl_golden_test.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <exception>

#include "tests/cuda/machine.hpp"
#include "tests/cuda/nccl_links.hpp"
#include "tests/golden/golden_json.hpp"
#include "tests/mpi/layout_rounds.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

struct Continuations {
  std::string model;
  std::vector<std::vector<std::int32_t>> prompts, greedy;
};

std::vector<Continuations> all_continuations() {
  std::vector<Continuations> all;
  for (const auto& entry : std::filesystem::directory_iterator(STAGECOACH_SOURCE_DIR "/tests/golden/data")) {
    if (!std::filesystem::exists(entry.path() / "golden.json")) continue;
    const Json root = read_json(entry.path() / "golden.json");
    Continuations& one = all.emplace_back();
    one.model = entry.path().string();
    for (const Json& prompt : *root.find("prompts")->array()) one.prompts.push_back(ids(prompt));
    for (const Json& tokens : *root.find("greedy")->array()) one.greedy.push_back(ids(tokens));
  }
  std::ranges::sort(all, {}, &Continuations::model);
  return all;
}

// Prompts whose continuations differ; prints them.
int differences(const MpiProcess& process, Random& random, const Continuations& golden) {
  Job job;
  job.model = golden.model;
  job.dtype = DType::kFloat32;  // 16-bit activations may choose otherwise where two logits are close
  for (std::size_t p = 0; p < golden.prompts.size(); ++p) {
    Request request;
    request.index = static_cast<std::int64_t>(p);
    request.tokens = golden.prompts[p];
    request.max_new_tokens = static_cast<std::int32_t>(golden.greedy[p].size());
    request.ignore_eos = true;
    job.requests.push_back(request);
  }
  const std::int32_t stages = std::min(process.size(), open_model(job.model).config.n_layer);
  Layout layout = random_layout(random, job, stages);
  layout.backend = own_backend;
  int different = 0;
  for (const Sample& sample : run_ranks(job, layout, process, nccl_links(process, stages, 1))) {
    // Shorter where the model has no more positions.
    const std::vector<std::int32_t>& theirs = golden.greedy[static_cast<std::size_t>(sample.index)];
    if (!sample.tokens.empty() && sample.tokens.size() <= theirs.size() &&
        std::ranges::equal(sample.tokens, std::span(theirs).first(sample.tokens.size()))) {
      continue;
    }
    ++different;
    fmt::print(stderr, "{} prompt {}: {}, expected {}; {}\n", golden.model, sample.index, sample.tokens, theirs,
               layout.describe());
  }
  return different;
}

int run(const MpiProcess& process) {
  Random random(shared(process, std::random_device{}()));
  const std::vector<Continuations> all = all_continuations();
  std::uint64_t different = 0;
  int tried = 0;
  for (const Continuations& golden : all) {
    if (draw(random, 1, 5) > 2) continue;  // two of five, the same on all ranks
    ++tried;
    different += static_cast<std::uint64_t>(differences(process, random, golden));
  }
  different = shared(process, different);
  if (process.rank() == 0)
    fmt::print("{} of {} models over {} ranks, {} differences\n", tried, all.size(), process.size(), different);
  return different == 0 && all.size() >= 20 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  const MpiProcess process(&argc, &argv);
  prepare_machine();
  try {
    return run(process);
  } catch (const std::exception& e) {
    fmt::print(stderr, "rank {}: {}\n", process.rank(), e.what());
    process.abort(1);
  }
}
