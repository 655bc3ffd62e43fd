// Pipelines of CUDA stages: every operation agrees with the reference, and deterministic ones give the same bits for
// every layout.
#include <doctest/doctest.h>

#include "tests/cuda/cuda_backends.hpp"
#include "tests/pipeline/harness.hpp"
#include "tests/rounds.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

// int8 is for CPUs.
Job random_cuda_job(Random& random, std::int32_t stages) {
  Job job = random_job(random, stages, true);
  if (job.dtype == DType::kInt8) job.dtype = DType::kFloat16;
  return job;
}

}  // namespace

TEST_CASE("every operation of a pipeline of CUDA stages agrees with the reference") {
  const std::uint64_t seed = std::random_device{}();
  Random random(seed);
  for (int round = 0; round < rounds(10); ++round) {
    const auto stages = static_cast<std::int32_t>(draw(random, 1, 3));
    const Job job = random_cuda_job(random, stages);
    Layout layout = random_layout(random, job, stages);
    layout.backend = cuda_backend;
    layout.checking = true;
    INFO("seed " << seed << " round " << round << " model " << job.model << " layout " << layout.describe());
    CHECK(run_loopback(job, layout).size() >= job.requests.size());
  }
}

TEST_CASE("deterministic CUDA stages give the same bits for every layout, with graphs and without") {
  const std::uint64_t seed = std::random_device{}();
  Random random(seed);
  for (int round = 0; round < rounds(10); ++round) {
    const auto stages = static_cast<std::int32_t>(draw(random, 1, 4));
    const Job job = random_cuda_job(random, stages);
    Layout layout = random_layout(random, job, stages);
    Layout plain = plain_layout(job);
    layout.backend = deterministic_cuda_backend;
    plain.backend = ungraphed_cuda_backend;
    INFO("seed " << seed << " round " << round << " model " << job.model << " layout " << layout.describe());
    CHECK(difference(run_loopback(job, plain), run_loopback(job, layout)) == "");
  }
}
