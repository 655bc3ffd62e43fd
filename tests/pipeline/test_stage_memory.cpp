// What a plan says a stage takes is what its backend gives out, to the byte.
#include <doctest/doctest.h>

#include "tests/pipeline/stage_memory.hpp"
#include "tests/rounds.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

void check_many(const DeviceUnderTest& device, int count) {
  const std::uint64_t seed = std::random_device{}();
  Random random(seed);
  INFO("seed " << seed);
  for (int round = 0; round < rounds(count); ++round) check_stage_memory(random, device);
}

}  // namespace

TEST_CASE("CPU stages allocate what the plan says") {
  for (const int threads : {1, 2}) {
    check_many({[threads] {
                  return make_cpu_backend({threads, Simd::kBest});
                },
                [threads] { return cpu_layout(threads); }},
               40);
  }
}

TEST_CASE("reference stages allocate what the plan says") {
  check_many({make_reference_backend, reference_layout}, 20);
}
