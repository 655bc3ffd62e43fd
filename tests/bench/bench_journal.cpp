// What durability costs: bench_journal [FOLDER]. Samples of 64 tokens with log-probabilities, made durable in groups of
// 200 as the front desk does five times a second at 1,000 samples a second: shares of that second which the writing
// thread spends, all in all and on a core (the rest is waiting for the disk, during which others compute). Then how
// long it takes to open a journal of a million samples again.
#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <vector>

#include "runtime/journal.hpp"

namespace {

using namespace stagecoach;

double cpu_s() {
  timespec now = {};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}
double wall_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Sample sample_of_64(std::int64_t index) {
  Sample sample;
  sample.index = index;
  for (std::int32_t t = 0; t < 64; ++t) {
    sample.tokens.push_back(t * 700);
    sample.logprobs.push_back(-0.01F * static_cast<float>(t));
  }
  return sample;
}

}  // namespace

int main(int argc, char** argv) {
  const std::filesystem::path folder = argc > 1 ? argv[1] : std::filesystem::temp_directory_path();
  const std::string output = folder / "stagecoach-bench-journal.jsonl";
  const JobIdentity job{{{"bench", "journal"}}};
  constexpr std::int64_t kMany = 1'000'000;
  std::int64_t index = 0;
  {
    Journal journal(output, job, true, {});
    std::vector<double> wall, cpu;
    for (int second = 0; second < 20; ++second) {
      const double wall_before = wall_s();
      const double cpu_before = cpu_s();
      for (int group = 0; group < 5; ++group) {
        for (int i = 0; i < 200; ++i) journal.append(sample_of_64(index++));
        journal.sync();
      }
      wall.push_back(wall_s() - wall_before);
      cpu.push_back(cpu_s() - cpu_before);
    }
    std::ranges::sort(wall);
    std::ranges::sort(cpu);
    fmt::print("of a second with 1,000 samples: writing thread {:.2f} %, of it on a core {:.2f} % (medians of 20)\n",
               100 * wall[10], 100 * cpu[10]);
    while (index < kMany) journal.append(sample_of_64(index++));
    journal.sync();
  }
  const double before = wall_s();
  {
    const Journal journal(output, job, false, {});
    fmt::print("opening a journal of {} samples, {} MB: {:.2f} s\n", journal.recorded_samples(),
               std::filesystem::file_size(Journal::path_of(output)) / 1'000'000, wall_s() - before);
  }
  std::filesystem::remove(Journal::path_of(output));
}
