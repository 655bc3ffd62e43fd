// INT, TERM and USR1 at any time: soon, one message, status 75, no half-written file, an older good one untouched.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <csignal>
#include <random>
#include <utility>

#include "tests/program/run_program.hpp"
#include "tests/rounds.hpp"

using namespace stagecoach::test;

namespace {

const std::string kGood = "an older run's results\n";
// Loads for a while, then runs for minutes if nothing ends it.
const std::string kLong =
    "synthetic:gpt2,n_layer=6,n_embd=192,n_head=3,vocab_size=20000,n_positions=1024,seed=1,dtype=float32";

std::string endless(const ScratchFolder& folder) {
  std::string lines;
  for (int i = 0; i < 200; ++i) lines += "{\"tokens\": [1, 2, 3]}\n";
  write_file(folder / "p.jsonl", lines);
  write_file(folder / "o.jsonl", kGood);
  return "generate --model " + kLong + " --threads 1 --prompts " + (folder / "p.jsonl") +
         " --max-new-tokens 1000 --ignore-eos --output " + (folder / "o.jsonl");
}

void check_files(const ScratchFolder& folder) {
  CHECK(read_file(folder / "o.jsonl") == kGood);
  CHECK(!std::filesystem::exists(folder / "o.jsonl.partial"));
}

// In front of a command that the shell becomes: sends `signal` to it after `delay_s`.
std::string signal_after(const char* signal, double delay_s) {
  return fmt::format("(sleep {:.3f}; kill -{} $$) & ", delay_s, signal);
}

// In front of other commands: waits until `count` processes of the program with `word` on their command line catch TERM
// and USR1, however long a busy machine takes to start them; a minute at most.
std::string once_caught(int count, const std::string& word) {
  return fmt::format(
      "for i in {{1..600}}; do n=0; for p in $(pgrep -f '^{}.*{}'); do "
      "m=$(sed -n 's/^SigCgt:[^0-9a-f]*//p' /proc/$p/status 2>/dev/null); (( (0x${{m:-0}} & 0x4200) == 0x4200 )) && "
      "((++n)); done; ((n >= {})) && break; sleep 0.1; done; ",
      STAGECOACH_PROGRAM, word, count);
}

}  // namespace

TEST_CASE("alone, at random moments") {
  const unsigned seed = std::random_device{}();
  INFO("seed " << seed);
  std::mt19937 random(seed);
  int orderly = 0;
  for (int round = 0; round < (slow_tests() ? 30 : 3); ++round) {
    const char* signal = round % 3 == 0 ? "INT" : round % 3 == 1 ? "TERM" : "USR1";
    const double delay_s = static_cast<double>(random() % 3000) / 1000.0;
    const ScratchFolder folder;
    const Ended ended = run_program(0, endless(folder) + (round % 2 == 0 ? "" : " --stages 3"), 0,
                                    "trap - INT; " + signal_after(signal, delay_s));
    INFO(signal << " after " << delay_s << " s: status " << ended.status << ": " << ended.err);
    CHECK(ended.seconds < on_this_machine(delay_s + 10.0));
    check_files(folder);
    if (ended.status > 128) continue;  // before it could have written anything
    ++orderly;
    CHECK(ended.status == 75);
    CHECK(ended.messages() == 1);
    CHECK(ended.says(fmt::format("stagecoach: interrupted by SIG{}", signal)));
  }
  CHECK(orderly > 0);
}

TEST_CASE("convert, in the middle of writing") {
  for (const char* signal : {"INT", "TERM"}) {
    const ScratchFolder folder;
    write_file(folder / "m.h5", kGood);
    const Ended ended =
        run_program(0, "convert --model synthetic:gpt2-medium --output " + (folder / "m.h5"), 0,
                    "(" + once_caught(1, folder.path().string()) + "sleep 0.3; kill -" + signal + " $$) & ");
    INFO(ended.err);
    CHECK(ended.status == 75);
    CHECK(ended.messages() == 1);
    CHECK(read_file(folder / "m.h5") == kGood);
    CHECK(!std::filesystem::exists(folder / "m.h5.partial"));
    CHECK(ended.seconds < on_this_machine(10.0));
  }
}

TEST_CASE("a second signal ends the process at once, and what is ignored stays ignored") {
  const ScratchFolder folder;
  const Ended twice = run_program(0, endless(folder), 0,
                                  "(" + once_caught(1, folder.path().string()) +
                                      "kill -STOP $$; kill -TERM $$; kill -CONT $$; sleep 1; kill -TERM $$) & ");
  CHECK((twice.status == 75 || twice.status == 143));
  CHECK(twice.seconds < on_this_machine(20.0));
  const Ended ignored = run_program(
      0, endless(folder), 0,
      "trap '' INT; (" + once_caught(1, folder.path().string()) + "kill -INT $$; sleep 1; kill -TERM $$) & ");
  CHECK(ignored.says("interrupted by SIGTERM"));
}

TEST_CASE("under mpirun: to mpirun and to single ranks") {
  const unsigned seed = std::random_device{}();
  INFO("seed " << seed);
  std::mt19937 random(seed);
  const int rounds = slow_tests() ? 24 : 4;
  for (int round = 0; round < rounds; ++round) {
    const char* signal = round % 3 == 0 ? "INT" : round % 3 == 1 ? "TERM" : "USR1";
    const double delay_s = 0.5 + static_cast<double>(random() % 2500) / 1000.0;
    const bool to_rank = round >= rounds / 2;
    const ScratchFolder folder;
    // A rank is found by its command line, which holds the folder.
    const std::string victim = fmt::format("(sleep {:.3f}; kill -{} $(pgrep -f '^{}.*{}' | shuf -n 1)) & ", delay_s,
                                           signal, STAGECOACH_PROGRAM, folder.path().string());
    const Ended ended = run_program(3, endless(folder), 0, to_rank ? victim : signal_after(signal, delay_s));
    INFO(signal << (to_rank ? " to a rank" : " to mpirun") << " after " << delay_s << " s: status " << ended.status
                << ": " << ended.err);
    CHECK(ended.status != 0);
    CHECK(ended.messages() <= 1);
    if (ended.mpirun_broke()) {
      MESSAGE("mpirun itself crashed or hung after its ranks had ended");
      check_files(folder);
      continue;
    }
    CHECK(ended.seconds < on_this_machine(delay_s + 10.0));
    check_files(folder);
    const bool started = ended.messages() == 1;
    if (started && ended.says("interrupted: mpirun ends the job")) {
      CHECK(ended.status == 1);  // mpirun's, whatever its ranks return
      CHECK(!to_rank);
    } else if (started) {
      CHECK(ended.says(": interrupted by SIG"));
      CHECK(ended.status == 75);
    }
  }
}

// mpirun passes neither on, but sends TERM to the ranks and soon KILL: rank 0 has a second to say so. On a machine that
// is too busy for that it may be late, so that one of a few attempts counts.
TEST_CASE("INT and TERM to mpirun itself: one message as well") {
  for (const char* signal : {"INT", "TERM"}) {
    int messages = 0;
    for (int attempt = 0; attempt < 4 && messages == 0; ++attempt) {
      const ScratchFolder folder;
      const Ended ended =
          run_program(3, endless(folder), 0,
                      fmt::format("({} sleep 1; kill -{} $$) & ", once_caught(3, folder.path().string()), signal));
      INFO(signal << ": " << ended.err);
      messages = ended.messages();
      CHECK(messages <= 1);
      CHECK(ended.status != 0);
      CHECK((messages == 0 || ended.says("stagecoach: interrupted: mpirun ends the job with SIGTERM")));
      check_files(folder);
    }
    CHECK(messages == 1);
  }
}

TEST_CASE("launch/mpirun makes 75 of every interruption") {
  using Case = std::pair<const char*, bool>;
  // The last as a terminal's ^C: to all of the group.
  for (const auto& [signal, group] :
       {Case("INT", false), Case("TERM", false), Case("USR1", false), Case("INT", true)}) {
    const ScratchFolder folder;
    const Ended ended = run_program(
        0, "; exit", 0,
        fmt::format("({}kill -{} {}$$) & exec {}{}/launch/mpirun -n 3 {} {} 2>{}; ",
                    once_caught(3, folder.path().string()), signal, group ? "-- -" : "", group ? "setsid -w " : "",
                    STAGECOACH_SOURCE_DIR, STAGECOACH_PROGRAM, endless(folder), folder / "err"));
    const std::string said = read_file(folder / "err");
    INFO(signal << ": " << said);
    CHECK(ended.status == 75);
    CHECK(said.find(": interrupted by SIGUSR1") !=
          std::string::npos);  // while it starts with the rank that saw it first
    check_files(folder);
  }
}
