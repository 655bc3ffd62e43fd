// A rank that dies or falls silent ends the job soon, with its name; a busy one is left alone.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <chrono>
#include <csignal>
#include <span>
#include <string>
#include <thread>

#include "tests/program/shared_runs.hpp"

using namespace stagecoach::test;

namespace {

// Runs for minutes if nothing ends it and `repeat` is large. `tag` in the arguments finds its processes again.
std::string endless(const std::string& tag, int timeout_s, int repeat = 1000) {
  return fmt::format(
      "bench --model synthetic:gpt2,n_layer=6,n_embd=96,n_head=3,vocab_size=500,seed={} --prompt-tokens 900 "
      "--new-tokens 100 --batch 16 --repeat {} --threads 1 -v --timeout {}",
      tag, repeat, timeout_s);
}

// Loads for some seconds.
std::string large(const std::string& tag, int timeout_s) {
  return fmt::format(
      "bench --model synthetic:gpt2-large,dtype=float32,seed={} --prompt-tokens 2 --new-tokens 2 --repeat 1 --threads "
      "1 "
      "-v --timeout {}",
      tag, timeout_s);
}

enum class When { kLoading, kRunning };

// With -v every rank says what it has loaded, and all but the first, before that, where its rows come from.
bool all_have_come_to(When when, const std::string& said, int ranks) {
  for (int rank = when == When::kLoading ? 1 : 0; rank < ranks; ++rank) {
    if (said.find(fmt::format("stagecoach: rank {} (stage {}", rank, rank)) == std::string::npos) return false;
  }
  return true;
}

// Sends `signal` to rank `victim` of three, and waits for the end.
Signalled run_with_signal(int signal, int victim, int timeout_s, When when = When::kRunning) {
  const std::string tag = fresh_tag();
  const bool running = when == When::kRunning;
  Signalled result = run_and_signal(
      3, running ? endless(tag, timeout_s) : large(tag, timeout_s), tag, signal, victim,
      [&](const std::string& said) { return all_have_come_to(when, said, 3); },
      std::chrono::seconds(running ? 1 : 0));  // past the last agreement
  CHECK(all_gone(tag));                        // nothing stays behind
  return result;
}

}  // namespace

TEST_CASE("a rank that never starts MPI ends the wait of the others, with one message") {
  const ScratchFolder folder;
  for (const int missing : {0, 1}) {
    const std::string start = fmt::format(
        "STAGECOACH_START_TIMEOUT=2 {} -n 3 bash -c 'if [ $OMPI_COMM_WORLD_RANK = {} ]; then exec sleep 60; fi; exec "
        "{} "
        "generate --prompt x --model synthetic:gpt2,n_layer=3' 2> {}; exit $?; ",
        STAGECOACH_MPIEXEC, missing, STAGECOACH_PROGRAM, folder / "err");
    Ended ended = run_program(0, "--version", 60, start);
    ended.err = read_file(folder / "err");
    INFO(ended.err);
    CHECK(ended.status == 1);
    CHECK(ended.seconds < on_this_machine(30.0));
    CHECK(ended.messages() == 1);
    CHECK(ended.says(fmt::format("rank {} (host ", missing == 0 ? 1 : 0)));
    CHECK(ended.says("): MPI has not started within 2 s"));
  }
}

TEST_CASE("a killed rank ends the job") {
  for (const int victim : {0, 1, 2}) {
    const Signalled faulted = run_with_signal(SIGKILL, victim, 60);
    INFO("rank " << victim << ": status " << faulted.ended.status << ": " << faulted.ended.err);
    CHECK(faulted.ended.has_status(137));  // mpirun's word for it
    CHECK(faulted.seconds_after < 10.0);
  }
}

TEST_CASE("a stopped rank is named within the silence deadline") {
  for (const int victim : {0, 1, 2}) {
    const Signalled faulted = run_with_signal(SIGSTOP, victim, 4);
    INFO("rank " << victim << ": status " << faulted.ended.status << ": " << faulted.ended.err);
    CHECK(faulted.ended.has_status(1));
    CHECK(faulted.ended.says(fmt::format("heard nothing from rank {0} (stage {0}, host ", victim)));
    const std::size_t first = faulted.ended.err.find("heard nothing");  // others see it too, and mpirun sends them TERM
    CHECK(faulted.ended.err.find("heard nothing", first + 1) == std::string::npos);
    CHECK(!faulted.ended.says("interrupted"));
    CHECK(faulted.seconds_after < 15.0);
  }
}

// As when Slurm suspends a job and resumes it: each rank was itself silent for longer than the limit, and none is
// blamed.
TEST_CASE("a job whose ranks are all stopped goes on when they are continued one after the other") {
  const std::string tag = fresh_tag();
  const auto suspend_and_resume = [](std::span<const pid_t> pids) {
    for (const pid_t pid : pids) kill(pid, SIGSTOP);
    std::this_thread::sleep_for(std::chrono::seconds(5));
    for (const pid_t pid : pids) {
      kill(pid, SIGCONT);
      std::this_thread::sleep_for(std::chrono::milliseconds(500));
    }
  };
  const auto ready = [](const std::string& said) { return all_have_come_to(When::kRunning, said, 3); };
  const Ended ended = run_and_act(3, endless(tag, 2, 3), tag, ready, std::chrono::seconds(0), suspend_and_resume).ended;
  INFO(ended.err);
  CHECK(ended.status == 0);
  CHECK(ended.out.find("decode") != std::string::npos);
}

TEST_CASE("so is one that is stopped while others load, and one that dies then ends the job as well") {
  for (const int victim : {0, 1, 2}) {
    const Signalled stopped = run_with_signal(SIGSTOP, victim, 5, When::kLoading);
    INFO("rank " << victim << ": " << stopped.ended.err);
    CHECK(stopped.ended.has_status(1));
    CHECK(stopped.ended.says(fmt::format("heard nothing from rank {} (host ", victim)));
    CHECK(stopped.seconds_after < 60.0);  // others load on meanwhile
  }
  CHECK(run_with_signal(SIGKILL, 2, 60, When::kLoading).ended.has_status(137));
}
