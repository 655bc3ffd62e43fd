// Jobs that are killed at any moment and started again end with the file that they would have had.
#include <doctest/doctest.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <iterator>
#include <random>
#include <set>
#include <stop_token>
#include <string>
#include <system_error>
#include <thread>

#include "tests/program/run_program.hpp"
#include "tests/rounds.hpp"

using namespace stagecoach::test;

namespace {

const std::string kModel =
    " --model synthetic:gpt2,n_layer=6,n_embd=64,n_head=2,n_positions=300,vocab_size=400,seed=1 ";

std::string prompts_of(int count, std::mt19937& random) {
  std::string lines;
  for (int i = 0; i < count; ++i) {
    lines += fmt::format("{{\"id\":\"p{}\",\"tokens\":[", i);
    const int length = 1 + static_cast<int>(random() % 60);
    for (int t = 0; t < length; ++t) lines += fmt::format("{}{}", t == 0 ? "" : ",", random() % 400);
    lines += fmt::format("],\"max_new_tokens\":{},\"num_samples\":{}}}\n", 1 + random() % 40, 1 + random() % 3);
  }
  return lines;
}

// One of the processes of the run with this output, mpirun and the shell around it included, hears `signal`.
void strike(const std::string& output, const char* signal) {
  static_cast<void>(std::system(
      fmt::format("pgrep -f 'stagecoach [a-z]+ .*{}' | shuf -n 1 | xargs -r kill -{} 2>/dev/null", output, signal)
          .c_str()));
}

void damage(const std::string& path, std::mt19937& random) {
  std::string bytes = read_file(path);
  if (bytes.empty()) return;
  const std::size_t at = random() % bytes.size();
  if (random() % 2 == 0) {
    bytes.resize(at);
  } else {
    bytes[at] = static_cast<char>(bytes[at] ^ 0x10);
  }
  write_file(path, bytes);
}

// Until the run with this output has made samples durable.
void wait_for_samples(const std::string& output) {
  std::error_code none_yet;
  for (int i = 0; i < 20000; ++i) {
    const auto bytes = std::filesystem::file_size(output + ".journal", none_yet);
    if (!none_yet && bytes > 3000) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

// In one of eight layouts, alone or under mpirun.
constexpr unsigned kLayouts = 8;
Ended start(unsigned layout, const std::string& arguments) {
  constexpr int kRanks[kLayouts] = {0, 0, 2, 3, 0, 4, 2, 8};
  constexpr const char* kOptions[kLayouts] = {"", " --stages 2", "", "", " --replicas 2", " --replicas 2",
                                               " --context-shards 2", " --replicas 2 --context-shards 2 --threads 1"};
  return run_program(kRanks[layout], arguments + kOptions[layout], 120);
}

// Names in the folder of results, in order.
std::string names_in(const std::filesystem::path& folder) {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) names.insert(entry.path().filename());
  return fmt::format("{}", fmt::join(names, " "));
}

// Starts the job until it is done, each time in another layout, and something dies at some moment of most runs.
// Returns how many runs that took.
int run_to_the_end(const std::string& arguments, const std::string& output, const std::string& expected, double whole_s,
                   bool with_damage, std::mt19937& random) {
  constexpr int kMostRuns = 40;
  constexpr const char* kOrderly[] = {"TERM", "INT", "USR1"};
  for (int runs = 1; runs <= kMostRuns; ++runs) {
    std::jthread killer;
    if (runs < kMostRuns / 2) {
      const double at_s = whole_s * static_cast<double>(random() % 1000) / 850.0;
      const char* signal = random() % 3 == 0 ? kOrderly[random() % std::size(kOrderly)] : "KILL";
      killer = std::jthread([=](const std::stop_token& stop) {
        const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(at_s);
        while (!stop.stop_requested() && std::chrono::steady_clock::now() < until) {
          std::this_thread::sleep_for(std::chrono::milliseconds(5));
        }
        if (!stop.stop_requested()) strike(output, signal);
      });
    }
    const Ended ended = start(static_cast<unsigned>(random() % kLayouts), arguments);
    INFO(ended.err);
    CHECK(ended.status != 2);
    CHECK(ended.status != 3);
    CHECK(ended.status != 124);
    if (ended.status == 0) return runs;
    if (std::filesystem::exists(output)) CHECK(read_file(output) == expected);  // complete or not at all
    if (with_damage) damage(output + ".journal", random);
  }
  return kMostRuns + 1;
}

}  // namespace

TEST_CASE("killed anywhere, any number of times, the job ends with the same file") {
  const unsigned seed = std::random_device{}();
  CAPTURE(seed);
  std::mt19937 random(seed);
  const ScratchFolder folder;
  write_file(folder / "p.jsonl", prompts_of(150, random));
  const std::string generate = "generate --quiet --temperature 0.9 --logprobs --ignore-eos --prompts " +
                               (folder / "p.jsonl") + kModel + "--output ";
  double whole_s = 0.0;
  for (const char* name : {"whole.jsonl", "whole.h5"}) {
    const Ended whole = run_program(0, generate + (folder / name), 120);
    REQUIRE(whole.status == 0);
    whole_s = whole.seconds;
  }
  int runs = 0;
  const int rounds = slow_tests() ? 150 : 3;
  for (int round = 0; round < rounds; ++round) {
    CAPTURE(round);
    const std::string kind = round % 3 == 2 ? ".h5" : ".jsonl";
    const std::string expected = read_file(folder / ("whole" + kind));
    std::filesystem::create_directory(folder / "results");
    const std::string output = folder / ("results/out" + kind);
    runs += run_to_the_end(generate + output, output, expected, whole_s, round % 2 == 1, random);
    const bool same = read_file(output) == expected;  // not to be printed when they differ
    CHECK(same);
    CHECK(all_gone(output));
    CHECK(names_in(folder / "results") == "out" + kind + " out" + kind + ".journal");
    // Once more: it is there already.
    CHECK(run_program(0, generate + output).status == 0);
    std::filesystem::remove_all(folder / "results");
  }
  MESSAGE(runs, " runs in ", rounds, " rounds");
  CHECK(runs > rounds);  // somebody was killed
}

TEST_CASE("scores of texts go on window by window") {
  std::mt19937 random(std::random_device{}());
  const ScratchFolder folder;
  std::string line = "{\"tokens\":[1";
  for (int t = 0; t < (slow_tests() ? 200000 : 20000); ++t) line += fmt::format(",{}", random() % 400);
  write_file(folder / "t.jsonl", line + "]}\n{\"tokens\":[5,6,7]}\n{\"tokens\":[8]}\n");
  const std::string output = folder / "scores.h5";
  const std::string score = "score --quiet --stride 100 --prompts " + (folder / "t.jsonl") + kModel + "--output ";
  const Ended whole = run_program(0, score + (folder / "whole.jsonl"), 120);
  REQUIRE(whole.status == 0);
  const std::string expected = read_file(folder / "whole.jsonl");
  const int runs =
      run_to_the_end(score + (folder / "o.jsonl"), folder / "o.jsonl", expected, whole.seconds, false, random);
  MESSAGE(runs, " runs");
  CHECK(read_file(folder / "o.jsonl") == expected);
  const Ended again = run_program(0, score + (folder / "o.jsonl"));
  CHECK(again.out == whole.out);  // the summary as well
  CHECK(run_program(2, score + output, 120).status == 0);
  CHECK(names_in(folder.path()) ==
        "o.jsonl o.jsonl.journal scores.h5 scores.h5.journal t.jsonl whole.jsonl whole.jsonl.journal");
}

TEST_CASE("a full disk ends the job, and room lets it go on") {
  const ScratchFolder folder;
  const SmallDisk disk(folder / "disk", 48);
  if (!disk.mounted()) {
    MESSAGE("skipped: only root can mount a small disk");
    return;
  }
  std::mt19937 random(std::random_device{}());
  write_file(folder / "p.jsonl", prompts_of(300, random));
  const std::string job = "generate --quiet --ignore-eos --prompts " + (folder / "p.jsonl") + kModel + "--output ";
  REQUIRE(run_program(0, job + (folder / "whole.jsonl")).status == 0);
  const std::string output = folder / "disk/o.jsonl";
  int full = 0;
  for (int kib = 48; kib < 4096; kib *= 2) {
    disk.grow(kib);
    const Ended ended = run_program(full % 2 == 0 ? 0 : 2, job + output, 60);
    INFO(ended.err);
    if (ended.status == 0) break;
    ++full;
    CHECK(ended.status == 1);
    CHECK(ended.says("No space left on device"));
    CHECK_FALSE(std::filesystem::exists(output));
  }
  CHECK(full > 0);
  CHECK(read_file(output) == read_file(folder / "whole.jsonl"));
}

// A job that was killed when some of its samples were durable.
void kill_when_under_way(const std::string& job, const std::string& output) {
  const std::jthread killer([&] {
    wait_for_samples(output);
    static_cast<void>(std::system(fmt::format("pkill -KILL -f 'stagecoach generate .*{}'", output).c_str()));
  });
  run_program(0, job);
}

TEST_CASE("a disk that turned read-only ends the job, and it goes on when that is over") {
  const ScratchFolder folder;
  const SmallDisk disk(folder / "disk", 4096);
  if (!disk.mounted()) {
    MESSAGE("skipped: only root can mount a small disk");
    return;
  }
  std::mt19937 random(std::random_device{}());
  write_file(folder / "p.jsonl", prompts_of(400, random));
  const std::string job = "generate --quiet --ignore-eos --prompts " + (folder / "p.jsonl") + kModel + "--output ";
  REQUIRE(run_program(0, job + (folder / "whole.jsonl")).status == 0);
  const std::string output = folder / "disk/o.jsonl";
  kill_when_under_way(job + output, output);
  // A process that is on its way out has no command line any more, and may have its files for a moment yet.
  const auto remount = [&](const char* how) {
    const std::string command = fmt::format("mount -o remount,{} {} 2> /dev/null", how, folder / "disk");
    for (int i = 0; i < 1000; ++i) {
      if (std::system(command.c_str()) == 0) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return false;
  };
  REQUIRE(all_gone(output));
  REQUIRE(remount("ro"));
  const std::string before = read_file(output + ".journal");
  for (const int ranks : {0, 2}) {
    const Ended ended = run_program(ranks, job + output);
    INFO(ended.err);
    CHECK(ended.status == 1);
    CHECK(ended.messages() == 1);
    CHECK(ended.says("Read-only file system"));
  }
  REQUIRE(remount("rw"));
  CHECK(read_file(output + ".journal") == before);
  CHECK(run_program(2, job + output).status == 0);
  CHECK(read_file(output) == read_file(folder / "whole.jsonl"));
}

TEST_CASE("what changes results is refused by name, what does not is welcome") {
  const ScratchFolder folder;
  const std::string output = folder / "o.jsonl";
  std::mt19937 random(3);
  write_file(folder / "p.jsonl", prompts_of(400, random));
  const std::string job =
      "generate --quiet --ignore-eos --prompts " + (folder / "p.jsonl") + kModel + "--output " + output;
  kill_when_under_way(job, output);
  REQUIRE_FALSE(std::filesystem::exists(output));
  REQUIRE(std::filesystem::exists(output + ".journal"));
  const auto refused = [&](const std::string& arguments, const std::string& says) {
    const Ended ended = run_program(2, arguments);
    INFO(ended.err);
    CHECK(ended.status == 2);
    CHECK(ended.messages() == 1);
    CHECK(ended.says(says));
  };
  refused(job + " --temperature 0.5", "this job was begun with --temperature 0, and now it is 0.5; ");
  refused(job + " --seed 4", "with --seed 0, and now it is 4");
  refused(job + " --dtype bfloat16", "with --dtype ");
  refused(job + " --kv-dtype float16", "with --kv-dtype float32, and now it is float16");
  write_file(folder / "p.jsonl", read_file(folder / "p.jsonl") + "{\"tokens\":[1]}\n");
  refused(job, "with prompts 400 with hash ");
  CHECK(run_program(2, job + " --fresh --chunk-tokens 9 --in-flight 3 --threads 1").status == 0);
  CHECK(read_file(output).find("\"index\":400,") != std::string::npos);
}

// Stops the process that writes this journal and takes the locks from it, as when its host is cut off from the file
// system. Returns it, or 0 where the system does not let us.
pid_t cut_off_writer_of(const std::string& output) {
  std::error_code gone;
  for (const auto& process : std::filesystem::directory_iterator("/proc", gone)) {
    for (const auto& entry : std::filesystem::directory_iterator(process.path() / "fd", gone)) {
      if (std::filesystem::read_symlink(entry.path(), gone) != output + ".journal") continue;
      const pid_t pid = std::stoi(process.path().filename());
      kill(pid, SIGSTOP);
      const auto process_fd = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
      bool unlocked = false;
      for (const auto& open : std::filesystem::directory_iterator(process.path() / "fd", gone)) {
        if (!std::filesystem::read_symlink(open.path(), gone).string().starts_with(output)) continue;
        const int number = std::stoi(open.path().filename());
        const auto same_file = static_cast<int>(syscall(SYS_pidfd_getfd, process_fd, number, 0));
        unlocked = flock(same_file, LOCK_UN) == 0;
        close(same_file);
      }
      close(process_fd);
      if (unlocked) return pid;
      kill(pid, SIGCONT);
      return 0;
    }
  }
  return 0;
}

TEST_CASE("a run that was cut off and lives on cannot touch the results of the one that took over") {
  const ScratchFolder folder;
  std::mt19937 random(std::random_device{}());
  write_file(folder / "p.jsonl", prompts_of(1200, random));
  const std::string job = "generate --quiet --ignore-eos --prompts " + (folder / "p.jsonl") + kModel + "--output ";
  REQUIRE(run_program(0, job + (folder / "whole.jsonl"), 120).status == 0);
  const std::string expected = read_file(folder / "whole.jsonl");
  const bool either = random() % 2 == 0;
  for (const bool over_before : {true, false}) {  // the second run, when the first wakes up
    if (!slow_tests() && over_before != either) continue;
    CAPTURE(over_before);
    std::filesystem::create_directory(folder / "results");
    const std::string output = folder / "results/o.jsonl";
    Ended first;
    std::jthread other([&] { first = run_program(0, job + output, 120); });
    wait_for_samples(output);
    const pid_t cut_off = cut_off_writer_of(output);
    if (cut_off == 0) {
      MESSAGE("skipped: cannot take another process's locks here");
      return;
    }
    std::jthread waker([&] {
      if (over_before) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(random() % 1500));
      kill(cut_off, SIGCONT);
    });
    const Ended second = run_program(2, job + output, 120);
    if (over_before) kill(cut_off, SIGCONT);
    waker.join();
    other.join();
    INFO(first.err << second.err);
    CHECK(second.status == 0);
    CHECK(first.status == 1);
    CHECK(first.says("another run has taken this job over"));
    const bool same = read_file(output) == expected;
    CHECK(same);
    CHECK(names_in(folder / "results") == "o.jsonl o.jsonl.journal");
    CHECK(run_program(0, job + output).status == 0);
    std::filesystem::remove_all(folder / "results");
  }
}

TEST_CASE("a second run on the same output waits for the first and then has nothing to do") {
  const ScratchFolder folder;
  std::mt19937 random(4);
  write_file(folder / "p.jsonl", prompts_of(1200, random));
  const std::string output = folder / "o.jsonl";
  const std::string job = "generate --ignore-eos --prompts " + (folder / "p.jsonl") + kModel + "--output " + output;
  Ended first;
  std::jthread other([&] { first = run_program(0, job, 120); });
  for (int i = 0; i < 2000 && !std::filesystem::exists(output + ".journal"); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  const Ended second = run_program(2, job, 120);
  other.join();
  INFO(first.err << second.err);
  CHECK(first.status == 0);
  CHECK(second.status == 0);
  CHECK(second.says("another run is writing it; waiting for that one to end"));
  CHECK(second.says("is complete already"));
}
