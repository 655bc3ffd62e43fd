// What a plan says a stage takes of a device's pool is what the pool gives out, to the byte.
#include <doctest/doctest.h>

#include "tests/cuda/cuda_backends.hpp"
#include "tests/pipeline/stage_memory.hpp"
#include "tests/rounds.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

// Recorded steps take memory of the driver's, beside the pool.
std::unique_ptr<Backend> without_graphs() {
  return make_cuda_backend({.device = 0, .pool_bytes = std::int64_t{64} << 20, .graphs = false});
}

}  // namespace

TEST_CASE("CUDA stages allocate what the plan says") {
  const std::uint64_t seed = std::random_device{}();
  Random random(seed);
  INFO("seed " << seed);
  for (int round = 0; round < rounds(20); ++round) {
    check_stage_memory(random, {without_graphs, [] { return cuda_layout(std::int64_t{64} << 20); }, false});
  }
}
