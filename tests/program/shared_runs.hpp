// Runs that several tests make: one command in many grids, and one in whose middle something happens to its ranks.
#pragma once

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <chrono>
#include <csignal>
#include <cstddef>
#include <filesystem>
#include <functional>
#include <future>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "tests/program/run_program.hpp"

namespace stagecoach::test {

struct GridOption {
  int ranks;
  const char* options;
};

// `command`, which writes `output`, alone and then in every grid: the same file. `also` looks at each of those runs.
inline void check_grids(const std::string& command, const std::string& output, std::span<const GridOption> grids,
                        int limit_s, const std::function<void(const Ended&)>& also = {}) {
  REQUIRE(run_program(0, command, limit_s).status == 0);
  const std::string expected = read_file(output);
  for (const GridOption& grid : grids) {
    std::filesystem::remove(output);
    const Ended ended = run_program(grid.ranks, command + grid.options, limit_s);
    INFO(command << " " << grid.options << " on " << grid.ranks << ": " << ended.err);
    REQUIRE(ended.status == 0);
    const bool same = read_file(output) == expected;
    CHECK(same);
    if (also) also(ended);
  }
}

// Finds the processes of a run again that has it in its arguments.
inline std::string fresh_tag() {
  return std::to_string(std::chrono::steady_clock::now().time_since_epoch().count() % 1000000007);
}

inline int times_in(const std::string& text, const std::string& part) {
  int times = 0;
  for (std::size_t at = 0; (at = text.find(part, at)) != std::string::npos; at += part.size()) ++times;
  return times;
}

struct Signalled {
  Ended ended;
  double seconds_after = 0.0;
};

// Once the run is `ready`, by what it has said, and `settle` later, `act` on its ranks; to the end.
inline Signalled run_and_act(int ranks, const std::string& arguments, const std::string& tag,
                             const std::function<bool(const std::string& said)>& ready, std::chrono::seconds settle,
                             const std::function<void(std::span<const pid_t> pids)>& act) {
  const ScratchFolder folder;
  const std::string said = folder / "err";
  auto job = std::async(std::launch::async, [&] { return run_program(ranks, arguments + " 2>" + said, 150); });
  for (int i = 0; i < 6000 && !ready(read_file(said)); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  const std::vector<pid_t> pids = ranks_with(tag, ranks);
  for (const pid_t pid : pids) REQUIRE(pid != 0);
  std::this_thread::sleep_for(settle);
  act(pids);
  const auto start = std::chrono::steady_clock::now();
  Signalled result{job.get(), 0.0};
  result.ended.err = read_file(said);
  result.seconds_after = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

// The same where rank `victim` hears `signal`.
inline Signalled run_and_signal(int ranks, const std::string& arguments, const std::string& tag, int signal, int victim,
                                const std::function<bool(const std::string& said)>& ready,
                                std::chrono::seconds settle) {
  return run_and_act(ranks, arguments, tag, ready, settle,
                     [=](std::span<const pid_t> pids) { kill(pids[static_cast<std::size_t>(victim)], signal); });
}

}  // namespace stagecoach::test
