// Memory budgets as users meet them: what does not fit is refused at once with numbers, what runs stays within its plan
// as the operating system counts it, and several small ranks do what one large one does, bit for bit.
#include <doctest/doctest.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <sstream>
#include <string>
#include <vector>

#include "tests/program/mistakes.hpp"
#include "tests/rounds.hpp"

using namespace stagecoach::test;

namespace {

constexpr std::int64_t kMiB = 1 << 20;

// What a process says with -v when it is done.
struct Peak {
  long long resident = 0, planned = 0;
};

std::vector<Peak> peaks_of(const Ended& ended) {
  std::vector<Peak> peaks;
  std::istringstream lines(ended.err);
  for (std::string line; std::getline(lines, line);) {
    const std::size_t at = line.find("peak resident memory ");
    if (at == std::string::npos) continue;
    Peak peak;
    const int found = std::sscanf(line.c_str() + at, "peak resident memory %*f %*s (%lld bytes), planned %*f %*s (%lld",
                                  &peak.resident, &peak.planned);
    CHECK(found == 2);
    peaks.push_back(peak);
  }
  return peaks;
}

std::int64_t largest_plan(const Ended& ended) {
  std::int64_t largest = 0;
  for (const Peak& peak : peaks_of(ended)) largest = std::max<std::int64_t>(largest, peak.planned);
  return largest;
}

// A prompt of `count` tokens that do not repeat soon.
std::string prompt_line(int count, int vocab, int new_tokens) {
  std::vector<int> tokens;
  for (int i = 0; i < count; ++i) tokens.push_back(static_cast<int>((i * 7919LL + i / 89) % vocab));
  return fmt::format("{{\"tokens\": [{}], \"max_new_tokens\": {}}}\n", fmt::join(tokens, ","), new_tokens);
}

// As `prlimit --data`: of all that the shell starts.
std::string limited_to(std::int64_t bytes) {
  return fmt::format("ulimit -d {}; ", bytes / 1024);
}

void check_within_plan(const Ended& ended, int processes) {
  INFO(ended.err);
  CHECK(ended.status == 0);
  const std::vector<Peak> peaks = peaks_of(ended);
  CHECK(static_cast<int>(peaks.size()) == processes);
  for (const Peak& peak : peaks) {
    CHECK(peak.resident <= peak.planned);
    CHECK(static_cast<double>(peak.resident) >= 0.95 * static_cast<double>(peak.planned) - 64.0 * kMiB);
  }
}

}  // namespace

TEST_CASE("what does not fit its budget is refused in a moment, with what is needed, had and would do") {
  const ScratchFolder folder;
  write_file(folder / "p.jsonl", prompt_line(16000, 50257, 4));
  const std::string xl = "generate --model synthetic:gpt2-xl,n_positions=16384 --kv-dtype float16 --prompts " +
                         (folder / "p.jsonl") + " --memory-per-rank ";
  expect({xl + "4GiB --stages 1", 3, "stage 0 (blocks 0 to 47) needs "}, Where::kAlone);
  expect({xl + "4GiB --stages 1", 3, "Would fit: "}, Where::kAlone);
  expect({xl + "600MiB", 3, "available 600.0 MiB; KV cache for one sequence of 16064 tokens"});
  expect({xl + "1MiB", 3, "available 1.0 MiB"});  // less than the process itself
  for (const char* wrong : {"4GB", "0", "-1GiB", "''", "lots", "99999999999GiB"}) {
    expect({xl + wrong, 2, "--memory-per-rank: "}, Where::kMany);
  }
  expect({"bench --check --memory-per-rank 1GiB --model " + kTiny, 2, "--check: "}, Where::kMany);
}

TEST_CASE("each stage has the budget that the run file gives it") {
  const ScratchFolder folder;
  const std::string run_file = folder / "run.yaml";
  const auto stages = [&](const std::string& first, const std::string& second) {
    write_file(run_file, fmt::format("pipeline:\n  stages:\n    - {{blocks: [0, 5], memory: {}}}\n"
                                     "    - {{blocks: [6, 11], memory: {}}}\n",
                                     first, second));
  };
  const std::string arguments =
      "bench --threads 1 --model synthetic:gpt2,dtype=float32 --prompt-tokens 8 --new-tokens 2 --repeat 1 -v "
      "--config " +
      run_file;
  stages("2GiB", "300MiB");  // 325 MB of weights
  for (const int ranks : {0, 2}) {
    const Ended ended = run_program(ranks, arguments);
    INFO(ended.err);
    CHECK(ended.status == 3);
    CHECK(ended.messages() == 1);
    CHECK(ended.says("stage 1 (blocks 6 to 11) needs "));
    CHECK(ended.says("available 300.0 MiB"));
    CHECK_FALSE(ended.says("stage 0 (blocks"));
  }
  stages("2GiB", "1GiB");
  for (const int ranks : {0, 2}) check_within_plan(run_program(ranks, arguments), std::max(ranks, 1));
  stages("2GiB", "300MiB");
  check_within_plan(run_program(2, arguments + " --memory-per-rank 1GiB"), 2);  // the command line wins
}

TEST_CASE("ranks take what was planned, whatever the weights are and come from") {
  const ScratchFolder folder;
  write_file(folder / "p.jsonl", prompt_line(120, 50257, 3));
  const std::string native = folder / "m.h5";
  const std::string model = "synthetic:gpt2,n_layer=3";
  const Ended converted = run_program(0, "convert --model " + model + " --output " + native);
  REQUIRE(converted.status == 0);
  const auto run = [&](const std::string& more, int ranks = 2) {
    CAPTURE(more);
    check_within_plan(run_program(ranks, "generate --fresh -v --threads 2 --output " + (folder / "o.jsonl") +
                                             " --prompts " + (folder / "p.jsonl") + " --model " + more),
                      std::max(ranks, 1));
  };
  for (const char* dtype : {"float32", "float16", "bfloat16", "int8"}) {
    run(fmt::format("{} --dtype {}", model, dtype));
    run(fmt::format("{} --dtype {} --memory-per-rank 1GiB", native, dtype));  // panels
  }
  run(model + " --stages 3 --memory-per-rank 700MiB", 0);
  // Hugging Face's files.
  check_within_plan(
      run_program(
          2, "generate --fresh -v --threads 2 --prompt 'One day' --memory-per-rank 400MiB --dtype float32 --output " +
                 (folder / "o.jsonl") + " --model " + kDemo),
      2);
}

TEST_CASE("ranks run to the end under a limit of the system a few percent above their plan") {
  const ScratchFolder folder;
  write_file(folder / "p.jsonl", prompt_line(150, 50257, 3));
  const std::string arguments = "generate --fresh -v --threads 2 --prompts " + (folder / "p.jsonl") + " --output " +
                                (folder / "o.jsonl") + " --model synthetic:gpt2,n_layer=4 --dtype ";
  for (const char* dtype : {"float32", "int8"}) {
    const Ended free = run_program(2, arguments + dtype);
    check_within_plan(free, 2);
    const std::string expected = read_file(folder / "o.jsonl");
    const std::int64_t plan = largest_plan(free);
    std::filesystem::remove(folder / "o.jsonl");
    const std::string budget = fmt::format("{} --memory-per-rank {}", dtype, plan + kMiB);
    check_within_plan(run_program(2, arguments + budget, 120, limited_to((plan + kMiB) * 103 / 100)), 2);
    CHECK(read_file(folder / "o.jsonl") == expected);
    // Without a budget the limit itself is what there is; too tight a one is no crash.
    const Ended refused = run_program(2, arguments + dtype, 120, limited_to(plan - 30 * kMiB));
    INFO(refused.err);
    CHECK(refused.status == 3);
    CHECK(refused.messages() == 1);
  }
}

namespace {

// One rank without a limit and four with one each give the same file; one with such a limit is refused.
void compare_long_prompt(int tokens, int limit_s) {
  const ScratchFolder folder;
  write_file(folder / "p.jsonl", prompt_line(tokens, 503, 8) + prompt_line(tokens / 3, 503, 8));
  const std::string output = folder / "o.jsonl";
  const std::string arguments = "generate --fresh -v --threads 1 --logprobs --output " + output + " --prompts " +
                                (folder / "p.jsonl") +
                                " --model synthetic:gpt2,n_layer=4,n_head=2,n_embd=64,n_positions=131072,"
                                "vocab_size=503,seed=2 ";
  const Ended alone = run_program(0, arguments, limit_s);
  check_within_plan(alone, 1);
  const std::string expected = read_file(output);
  CHECK(expected.size() > 300);
  std::filesystem::remove(output);
  // What the largest of four needs at least.
  write_file(folder / "one.jsonl", prompt_line(tokens, 503, 8));
  const std::string tight = arguments + "--memory-per-rank ";
  const Ended refused = run_program(4, tight + "20MiB", 120);
  CHECK(refused.status == 3);
  std::int64_t budget = 0;
  for (std::size_t at = refused.err.find(") needs "); at != std::string::npos;
       at = refused.err.find(") needs ", at + 1)) {
    double mib = 0;
    REQUIRE(std::sscanf(refused.err.c_str() + at, ") needs %lf MiB", &mib) == 1);
    budget = std::max(budget, static_cast<std::int64_t>((mib + 2) * kMiB));
  }
  CAPTURE(budget);
  const Ended ranks = run_program(4, tight + std::to_string(budget), limit_s, limited_to(budget * 104 / 100));
  check_within_plan(ranks, 4);
  CHECK(read_file(output) == expected);
  const Ended one = run_program(1, tight + std::to_string(budget), 120);
  CHECK(one.status == 3);
  CHECK(one.says("stages with as much each"));
}

}  // namespace

TEST_CASE("a long prompt on four small ranks gives what one large rank gives") {
  compare_long_prompt(slow_tests() ? 131000 : 9000, slow_tests() ? 1800 : 120);
}

TEST_CASE("prompts beyond a large model's positions are refused or cut, never silently") {
  const ScratchFolder folder;
  write_file(folder / "p.jsonl", prompt_line(131073, 50, 2));
  const std::string arguments =
      "generate --model synthetic:gpt2,n_layer=3,n_head=1,n_embd=8,n_positions=131072,"
      "vocab_size=50 --prompts " +
      (folder / "p.jsonl") + " --output " + (folder / "o.jsonl");
  expect({arguments, 2, "131073 tokens, but the model has 131072 positions"});
  if (!slow_tests()) return;
  const Ended cut = run_program(0, arguments + " --long-prompt truncate", 300);
  INFO(cut.err);
  CHECK(cut.status == 0);
  CHECK(read_file(folder / "o.jsonl").find("\"prompt_tokens\":131072,") != std::string::npos);
}
