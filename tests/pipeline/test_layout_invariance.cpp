// The contract of the mission: any layout gives the same tokens and log-probabilities as one stage, bit for bit.
#include <doctest/doctest.h>

#include <random>

#include "tests/pipeline/harness.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

TEST_CASE("random layouts over loopback equal one stage bit for bit") {
  const std::uint64_t seed = std::random_device{}();
  Random random(seed);
  for (int round = 0; round < 40; ++round) {
    const auto stages = static_cast<std::int32_t>(draw(random, 1, 8));
    const Job job = random_job(random, stages);
    const std::vector<Sample> expected = run_loopback(job, plain_layout(job));
    const Layout layout = random_layout(random, job, stages);
    INFO("seed " << seed << " round " << round << " model " << job.model << " layout " << layout.describe());
    CHECK(difference(expected, run_loopback(job, layout)) == "");
  }
}

TEST_CASE("every operation of a pipeline agrees with the reference") {
  const std::uint64_t seed = std::random_device{}();
  Random random(seed);
  for (int round = 0; round < 6; ++round) {
    const Job job = random_job(random, 2);
    Layout layout = random_layout(random, job, 2);
    layout.checking = true;
    INFO("seed " << seed << " round " << round << " model " << job.model << " layout " << layout.describe());
    CHECK_NOTHROW(run_loopback(job, layout));
  }
}

TEST_CASE("the reference backend keeps the contract as well") {
  const std::uint64_t seed = std::random_device{}();
  Random random(seed);
  for (int round = 0; round < 6; ++round) {
    const Job job = random_job(random, 3);
    Layout plain = plain_layout(job);
    plain.reference = true;
    Layout layout = random_layout(random, job, 3);
    layout.reference = true;
    INFO("seed " << seed << " round " << round << " model " << job.model << " layout " << layout.describe());
    CHECK(difference(run_loopback(job, plain), run_loopback(job, layout)) == "");
  }
}
