// launch/mpirun as people start it at a terminal: what they type reaches the program, and no rank outlives the script.
// Its statuses and words: test_interrupt.cpp and test_first_runs.cpp.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <csignal>
#include <string>

#include "tests/program/mistakes.hpp"
#include "tests/program/run_program.hpp"
#include "tests/program/shared_runs.hpp"

using namespace stagecoach::test;

namespace {

const std::string kLauncher = fmt::format("{}/launch/mpirun -n 2 {} ", STAGECOACH_SOURCE_DIR, STAGECOACH_PROGRAM);

}  // namespace

TEST_CASE("prompts typed at a terminal") {
  const ScratchFolder folder;
  write_file(folder / "typed", "The coach\nOne day\n");
  const std::string command =
      kLauncher + "generate --model " + kDemo + " --max-new-tokens 3 --prompts - --output " + (folder / "o.jsonl");
  // script gives the command a terminal, types what stands in the file, and then ^D.
  const Ended ended = run_program(0, "; exit $status", 0,
                                  fmt::format("script -qec '{}' {} < {} > /dev/null; status=$?; true ", command,
                                              folder / "screen", folder / "typed"));
  INFO(read_file(folder / "screen"));
  CHECK(ended.status == 0);
  const std::string results = read_file(folder / "o.jsonl");
  INFO(results);
  CHECK(times_in(results, "\n") == 2);
  CHECK(times_in(results, "\"prompt\":\"The coach\"") == 1);
}

TEST_CASE("a killed script takes the job with it") {
  const ScratchFolder folder;
  const std::string command =
      kLauncher + "bench --model synthetic:gpt2,n_layer=6 --new-tokens 400 --repeat 1000 --json " + (folder / "b.json");
  const std::string once_running =
      fmt::format("(for i in {{1..600}}; do grep -q 'blocks 3 to 5' {0} && break; sleep 0.1; done; kill -KILL $$) & ",
                  folder / "err");
  const Ended ended =
      run_program(0, "; exit", 0, once_running + "exec " + command + " -v > " + (folder / "err") + " 2>&1; ");
  INFO(read_file(folder / "err"));
  CHECK(ended.status == 128 + SIGKILL);
  CHECK(all_gone(folder / "b.json"));
}
