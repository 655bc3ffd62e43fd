// Planned chunks: equal to trying all cuts, and to what the simulation says.
#include <doctest/doctest.h>

#include <algorithm>
#include <limits>
#include <random>

#include "partition/balance.hpp"
#include "partition/simulation.hpp"

using namespace stagecoach;

namespace {

using Random = std::mt19937_64;

std::int64_t draw(Random& random, std::int64_t low, std::int64_t high) {
  return std::uniform_int_distribution<std::int64_t>(low, high)(random);
}

double least_of_all(const ChunkProblem& p, std::int64_t first, double sum, double longest) {
  if (first >= p.prompt_tokens) return sum + (p.stages - 1) * longest;
  double best = std::numeric_limits<double>::infinity();
  for (std::int64_t rows = p.unit; rows <= std::max(p.most, p.unit); rows += p.unit) {
    const std::int64_t r = std::min(rows, p.prompt_tokens - first);
    const double time = p.seconds(first, r);
    best = std::min(best, least_of_all(p, first + r, sum + time, std::max(longest, time)));
    if (r < rows) break;
  }
  return best;
}

}  // namespace

TEST_CASE("planned chunks are the best of all cuts") {
  const std::uint64_t seed = std::random_device{}();
  Random random(seed);
  for (int round = 0; round < 1500; ++round) {
    ChunkProblem p;
    p.unit = static_cast<std::int32_t>(draw(random, 1, 3));
    p.prompt_tokens = draw(random, 1, 10 * p.unit);
    p.most = static_cast<std::int32_t>(draw(random, 1, 12 * p.unit));
    p.stages = static_cast<std::int32_t>(draw(random, 1, 6));
    const double fixed = static_cast<double>(draw(random, 0, 30));
    const double row = static_cast<double>(draw(random, 0, 10));
    const double key = static_cast<double>(draw(random, 0, 5));
    p.seconds = [=](std::int64_t first, std::int64_t rows) {
      return fixed + row * static_cast<double>(rows) + key * prompt_chunk(first, rows).prompt_keys();
    };
    INFO("seed " << seed << " round " << round);
    if (p.most < p.unit) p.most = p.unit;
    const PlannedChunks planned = plan_chunks(p);
    REQUIRE(planned.seconds == doctest::Approx(least_of_all(p, 0, 0.0, 0.0)).epsilon(1e-12));
    std::int64_t total = 0;
    for (const std::int32_t length : planned.chunks) total += length;
    REQUIRE(total == p.prompt_tokens);
    REQUIRE(longest_chunk(planned.chunks) <= p.most);
    REQUIRE(planned.seconds <= best_uniform_chunks(p).seconds);
  }
}

TEST_CASE("over equal stages the plan's time is the simulated one") {
  const std::uint64_t seed = std::random_device{}();
  Random random(seed);
  for (int round = 0; round < 100; ++round) {
    SimulatedPipeline pipeline;
    pipeline.model.n_layer = 12;
    pipeline.model.n_positions = 1 << 20;
    DeviceSpeed speed;
    speed.microbatch_s = static_cast<double>(draw(random, 0, 100)) * 1e-4;
    speed.product = Curve({{1.0, 1e-10}, {16.0, 2e-10}, {32.0, 4e-10}});
    speed.attention = Curve({{1.0, static_cast<double>(draw(random, 1, 20)) * 1e-11}});
    const auto stages = static_cast<std::int32_t>(draw(random, 1, 6));
    for (const BlockRange& blocks : proportional_cut(12, std::vector<double>(static_cast<std::size_t>(stages), 1.0))) {
      if (12 % stages == 0) pipeline.stages.push_back({blocks, speed, {}});
    }
    if (pipeline.stages.empty()) continue;
    ChunkProblem p;
    p.prompt_tokens = draw(random, 64, 4000);
    p.most = 512;
    p.unit = 64;
    p.stages = stages;
    p.seconds = [&](std::int64_t first, std::int64_t rows) {
      return stage_seconds(pipeline.model, pipeline.stages.front().blocks, speed, prompt_chunk(first, rows));
    };
    const PlannedChunks planned = plan_chunks(p);
    pipeline.chunks = planned.chunks;
    pipeline.in_flight = 100;
    INFO("seed " << seed << " round " << round);
    CHECK(simulate_ttft(pipeline, p.prompt_tokens) == doctest::Approx(planned.seconds).epsilon(1e-9));
  }
}

TEST_CASE("later chunks that see more keys are shorter") {
  ChunkProblem p;
  p.prompt_tokens = 4096;
  p.most = 1024;
  p.unit = 32;
  p.stages = 8;
  p.seconds = [](std::int64_t first, std::int64_t rows) {
    return 0.01 + 1e-5 * static_cast<double>(rows) + 1e-8 * prompt_chunk(first, rows).prompt_keys();
  };
  const PlannedChunks planned = plan_chunks(p);
  CHECK(planned.chunks.front() > planned.chunks[planned.chunks.size() - 2]);
  CHECK(planned.seconds < 0.99 * best_uniform_chunks(p).seconds);
}

TEST_CASE("chunks end where the plan says, and the last length repeats") {
  const ChunkPlan chunks{5, 3, 2};
  const std::int64_t ends[] = {5, 5, 5, 5, 5, 8, 8, 8, 10, 10, 12, 12, 14};
  for (std::int64_t p = 0; p < 13; ++p) CHECK(chunk_end(chunks, p) == ends[p]);
  CHECK(chunk_end({256}, 1000) == 1024);
  CHECK(chunk_unit(100) == 16);
  CHECK(131072 / chunk_unit(131072) <= 256);
}
