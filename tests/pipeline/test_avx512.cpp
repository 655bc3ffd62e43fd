// A file of its own, so that a CPU without AVX-512 counts as a skipped test.
#include <doctest/doctest.h>

#include <cstdio>

#include "tests/pipeline/harness.hpp"
#include "tests/rounds.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

TEST_CASE("AVX-512 gives the bits of AVX2") {
  if (simd_name(Simd::kAvx512).empty() || simd_name(Simd::kAvx2).empty()) {
    std::puts("Skipped: this CPU has no AVX-512");
    return;
  }
  const std::uint64_t seed = std::random_device{}();
  Random random(seed);
  for (int round = 0; round < rounds(20); ++round) {
    const auto stages = static_cast<std::int32_t>(draw(random, 1, 4));
    const Job job = random_job(random, stages);
    Layout layout = random_layout(random, job, stages);
    layout.simd = Simd::kAvx2;
    const std::vector<Sample> narrow = run_loopback(job, layout);
    for (const Simd wide : {Simd::kAvx512, Simd::kAvx512Vnni}) {
      if (simd_name(wide).empty()) continue;
      layout.simd = wide;
      INFO("seed " << seed << " round " << round << " model " << job.model << " layout " << layout.describe());
      CHECK(difference(narrow, run_loopback(job, layout)) == "");
    }
  }
}
