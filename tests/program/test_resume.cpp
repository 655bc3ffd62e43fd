// Jobs that are killed at any moment and started again end with the file that they would have had.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <iterator>
#include <random>
#include <string>
#include <thread>

#include "tests/program/mistakes.hpp"
#include "tests/program/run_program.hpp"

using namespace stagecoach::test;

namespace {

const std::string kModel = " --model synthetic:gpt2,n_layer=6,n_embd=64,n_head=2,n_positions=300,vocab_size=400,seed=1 ";

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
  static_cast<void>(
      std::system(fmt::format("pgrep -f 'stagecoach [a-z]+ .*{}' | shuf -n 1 | xargs -r kill -{} 2>/dev/null", output,
                              signal)
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

// Without mpirun or with so many ranks, and as many stages.
Ended start(int layout, const std::string& arguments) {
  return layout < 2 ? run_program(0, arguments + fmt::format(" --stages {}", layout + 1), 120)
                    : run_program(layout, arguments, 120);
}

bool tidy(const std::string& output) {
  return !std::filesystem::exists(output + ".partial") && !std::filesystem::exists(output + ".journal.new");
}

// Starts the job until it is done, each time in another layout, and something dies at some moment of most runs.
// Returns how many runs that took.
int run_to_the_end(const std::string& arguments, const std::string& output, const std::string& expected,
                   double whole_s, bool with_damage, std::mt19937& random) {
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
    const Ended ended = start(static_cast<int>(random() % 4), arguments);
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
  const std::string output = folder / "out.jsonl";
  const std::string generate = "generate --quiet --temperature 0.9 --logprobs --ignore-eos --prompts " +
                               (folder / "p.jsonl") + kModel + "--output ";
  const Ended whole = run_program(0, generate + (folder / "whole.jsonl"), 120);
  REQUIRE(whole.status == 0);
  const std::string expected = read_file(folder / "whole.jsonl");
  int runs = 0;
  const int rounds = slow_tests() ? 60 : 3;
  for (int round = 0; round < rounds; ++round) {
    CAPTURE(round);
    runs += run_to_the_end(generate + output, output, expected, whole.seconds, round % 2 == 1, random);
    CHECK(read_file(output) == expected);
    CHECK(tidy(output));
    // Once more: it is there already.
    CHECK(run_program(0, generate + output).status == 0);
    std::filesystem::remove(output);
    std::filesystem::remove(output + ".journal");
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
  const std::string score =
      "score --quiet --stride 100 --prompts " + (folder / "t.jsonl") + kModel + "--output ";
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
  CHECK(tidy(output));
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

TEST_CASE("what changes results is refused by name, what does not is welcome") {
  const ScratchFolder folder;
  const std::string output = folder / "o.jsonl";
  std::mt19937 random(3);
  write_file(folder / "p.jsonl", prompts_of(400, random));
  const std::string job = "generate --quiet --ignore-eos --prompts " + (folder / "p.jsonl") + kModel + "--output " + output;
  {
    const std::jthread killer([&] {  // once some samples are there
      std::error_code none_yet;
      for (int i = 0; i < 20000; ++i) {
        const auto bytes = std::filesystem::file_size(output + ".journal", none_yet);
        if (!none_yet && bytes > 3000) break;
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
      static_cast<void>(std::system(fmt::format("pkill -KILL -f 'stagecoach generate .*{}'", output).c_str()));
    });
    run_program(0, job);
  }
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
