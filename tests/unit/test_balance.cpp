// Cuts of blocks into stages: equal to trying all of them, and better than what others do.
#include <doctest/doctest.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <random>

#include "partition/balance.hpp"

using namespace stagecoach;

namespace {

using Random = std::mt19937_64;

std::int64_t draw(Random& random, std::int64_t low, std::int64_t high) {
  return std::uniform_int_distribution<std::int64_t>(low, high)(random);
}

// Devices of several speeds and sizes; the first block and the last one cost more, as embedding and head do.
struct Case {
  BalanceProblem problem;
  std::vector<double> speed, memory;
  double head_s = 0.0, head_bytes = 0.0, embedding_bytes = 0.0, fixed_s = 0.0;

  explicit Case(Random& random) {
    problem.devices = static_cast<std::int32_t>(draw(random, 1, 5));
    problem.blocks = static_cast<std::int32_t>(draw(random, 1, 10));
    problem.stages = static_cast<std::int32_t>(draw(random, 1, problem.devices));
    const bool equal = draw(random, 0, 3) == 0;
    for (std::int32_t d = 0; d < problem.devices; ++d) {
      speed.push_back(equal && d > 0 ? speed[0] : static_cast<double>(draw(random, 1, 8)));
      memory.push_back(equal && d > 0 ? memory[0] : static_cast<double>(draw(random, 1, 14)));
    }
    head_s = static_cast<double>(draw(random, 0, 4));
    head_bytes = static_cast<double>(draw(random, 0, 3));
    embedding_bytes = static_cast<double>(draw(random, 0, 3));
    fixed_s = static_cast<double>(draw(random, 0, 1));
    problem.seconds = [this](std::int32_t d, BlockRange b) {
      const double head = b.last == problem.blocks - 1 ? head_s : 0.0;
      return fixed_s + (b.count() + head) / speed[static_cast<std::size_t>(d)];
    };
    problem.fits = [this](std::int32_t d, BlockRange b) {
      const double more = (b.last == problem.blocks - 1 ? head_bytes : 0.0) + (b.first == 0 ? embedding_bytes : 0.0);
      return b.count() + more <= memory[static_cast<std::size_t>(d)];
    };
  }
  Case(const Case&) = delete;
  Case& operator=(const Case&) = delete;
};

double brute_force(const BalanceProblem& p, std::int32_t device, std::int32_t stages, std::int32_t first) {
  constexpr double kNever = std::numeric_limits<double>::infinity();
  if (stages == 0) return first == p.blocks ? 0.0 : kNever;
  if (device == p.devices) return kNever;
  double best = brute_force(p, device + 1, stages, first);  // leave this one out
  for (std::int32_t last = first; last < p.blocks; ++last) {
    if (!p.fits(device, {first, last})) break;
    best = std::min(best, std::max(p.seconds(device, {first, last}), brute_force(p, device + 1, stages - 1, last + 1)));
  }
  return best;
}

}  // namespace

TEST_CASE("the slowest stage is as fast as any cut makes it") {
  const std::uint64_t seed = std::random_device{}();
  Random random(seed);
  int solved = 0;
  for (int round = 0; round < 4000; ++round) {
    const Case c(random);
    INFO("seed " << seed << " round " << round);
    const double best = brute_force(c.problem, 0, c.problem.stages, 0);
    const std::optional<Balance> found = balance(c.problem);
    REQUIRE(found.has_value() == (best < std::numeric_limits<double>::infinity()));
    if (!found) continue;
    ++solved;
    REQUIRE(found->slowest_s == doctest::Approx(best).epsilon(1e-12));
    REQUIRE(found->stages.size() == static_cast<std::size_t>(c.problem.stages));
    std::int32_t next = 0;
    double slowest = 0.0;
    for (std::size_t s = 0; s < found->stages.size(); ++s) {
      REQUIRE(found->stages[s].first == next);
      next = found->stages[s].last + 1;
      if (s > 0) REQUIRE(found->devices[s] > found->devices[s - 1]);
      REQUIRE(c.problem.fits(found->devices[s], found->stages[s]));
      slowest = std::max(slowest, c.problem.seconds(found->devices[s], found->stages[s]));
    }
    REQUIRE(next == c.problem.blocks);
    REQUIRE(slowest == found->slowest_s);
  }
  CHECK(solved > 1000);
}

TEST_CASE("many blocks and devices take no time") {
  BalanceProblem p;
  p.blocks = 500;
  p.devices = p.stages = 48;
  p.seconds = [](std::int32_t d, BlockRange b) { return b.count() * (1.0 + d % 3); };
  p.fits = [](std::int32_t, BlockRange) { return true; };
  const std::optional<Balance> found = balance(p);
  REQUIRE(found.has_value());
  CHECK(found->slowest_s <= 18.0);  // 500 blocks over 16 x (1 + 1/2 + 1/3) of speed: 17.05 each, in whole blocks
  p.stages = 49;
  CHECK(!balance(p).has_value());
}

TEST_CASE("proportional cuts give each stage a block, and shares by weight") {
  CHECK(proportional_cut(10, {1.0, 1.0, 1.0}) == std::vector<BlockRange>{{0, 2}, {3, 6}, {7, 9}});
  CHECK(proportional_cut(4, {100.0, 1.0, 1.0}) == std::vector<BlockRange>{{0, 1}, {2, 2}, {3, 3}});
  CHECK(proportional_cut(3, {1.0, 1.0, 100.0}) == std::vector<BlockRange>{{0, 0}, {1, 1}, {2, 2}});
}
