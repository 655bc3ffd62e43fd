// Random models, requests and layouts over MPI ranks, each against one stage in one process, bit for bit.
// Usage: mpirun -n N mpi_layout_test [rounds] [seed]. Every rank ends with the same status: 0 or 1.
#include <fmt/format.h>

#include <cstdlib>
#include <cstring>
#include <random>
#include <string>

#include "tests/pipeline/harness.hpp"
#include "tests/rounds.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

// Rank 0's value on every rank.
std::uint64_t shared(const MpiProcess& process, std::uint64_t value) {
  const auto all = process.all_gather(std::as_bytes(std::span(&value, 1)));
  std::memcpy(&value, all[0].data(), sizeof value);
  return value;
}

int run(const MpiProcess& process, int rounds, std::uint64_t seed) {
  Random random(seed);
  std::uint64_t failures = 0;
  for (int round = 0; round < rounds; ++round) {
    const auto stages = static_cast<std::int32_t>(round == 0 ? process.size() : draw(random, 1, process.size()));
    const Job job = random_job(random, stages);
    const Layout layout = random_layout(random, job, stages);
    const std::vector<Sample> actual = run_ranks(job, layout, process);
    if (process.rank() == 0) {
      const std::string what = difference(run_loopback(job, plain_layout(job)), actual);
      if (!what.empty()) {
        ++failures;
        fmt::print(stderr, "seed {} round {} model {} layout {}: {}\n", seed, round, job.model, layout.describe(),
                   what);
      }
    }
  }
  failures = shared(process, failures);
  if (process.rank() == 0)
    fmt::print("{} rounds over {} ranks, seed {}, {} failures\n", rounds, process.size(), seed, failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  const MpiProcess process(&argc, &argv);
  const int rounds = argc > 1 ? std::atoi(argv[1]) : stagecoach::test::rounds(15);
  const std::uint64_t given = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : std::random_device{}();
  try {
    return run(process, rounds, shared(process, given));
  } catch (const std::exception& e) {
    fmt::print(stderr, "rank {}: {}\n", process.rank(), e.what());
    process.abort(1);
  }
}
