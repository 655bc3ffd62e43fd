// Random models, requests and layouts over MPI ranks, each against one stage in one process, bit for bit.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <random>
#include <string>

#include "tests/pipeline/harness.hpp"
#include "tests/rounds.hpp"

namespace stagecoach::test {

// Rank 0's value on every rank.
inline std::uint64_t shared(const MpiProcess& process, std::uint64_t value) {
  const auto all = process.all_gather(std::as_bytes(std::span(&value, 1)));
  std::memcpy(&value, all[0].data(), sizeof value);
  return value;
}

// Collective; of one round.
using MakeLinks = RankLinks (*)(const MpiProcess& process, std::int32_t stages, std::int32_t shards);

struct LayoutTrial {
  int rounds = 0;      // usually
  bool small = false;  // jobs
};

inline int layout_rounds(const MpiProcess& process, LayoutTrial trial, std::uint64_t seed,
                         std::unique_ptr<Backend> (*backend)(), MakeLinks links) {
  Random random(seed);
  std::uint64_t failures = 0;
  for (int round = 0; round < trial.rounds; ++round) {
    const auto stages = static_cast<std::int32_t>(round == 0 ? process.size() : draw(random, 1, process.size()));
    const bool may_shard = draw(random, 0, 1) != 0;
    const std::int32_t most_shards = links != nullptr ? 2 : process.size();  // over NCCL as the program has it
    const auto shards =
        static_cast<std::int32_t>(may_shard ? draw(random, 1, std::min(process.size() / stages, most_shards)) : 1);
    Job job = backend == nullptr && shards > 1 && draw(random, 0, 2) == 0 ? random_long_job(random, stages)
                                                                          : random_job(random, stages, trial.small);
    Layout layout = random_layout(random, job, stages, shards);
    Layout plain = plain_layout(job);
    layout.backend = plain.backend = backend;
    if (backend != nullptr && job.dtype == DType::kInt8) job.dtype = DType::kFloat16;  // which is for CPUs
    const std::vector<Sample> actual =
        run_ranks(job, layout, process, links != nullptr ? links(process, stages, shards) : RankLinks{});
    if (process.rank() == 0) {
      const std::string what = difference(run_loopback(job, plain), actual);
      if (!what.empty()) {
        ++failures;
        fmt::print(stderr, "seed {} round {} model {} layout {}: {}\n", seed, round, job.model, layout.describe(),
                   what);
      }
    }
  }
  failures = shared(process, failures);
  if (process.rank() == 0)
    fmt::print("{} rounds over {} ranks, seed {}, {} failures\n", trial.rounds, process.size(), seed, failures);
  return failures == 0 ? 0 : 1;
}

// Arguments: [rounds] [seed]; the trial's rounds without. Every rank ends with the same status: 0 or 1.
inline int layout_main(int argc, char** argv, LayoutTrial trial, std::unique_ptr<Backend> (*backend)(),
                       MakeLinks links = nullptr) {
  const MpiProcess process(&argc, &argv);
  trial.rounds = argc > 1 ? std::atoi(argv[1]) : rounds(trial.rounds);
  const std::uint64_t given = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : std::random_device{}();
  try {
    return layout_rounds(process, trial, shared(process, given), backend, links);
  } catch (const std::exception& e) {
    fmt::print(stderr, "rank {}: {}\n", process.rank(), e.what());
    process.abort(1);
  }
}

}  // namespace stagecoach::test
