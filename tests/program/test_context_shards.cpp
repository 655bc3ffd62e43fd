// One prompt over several ranks of a stage: the same file whatever the grid, under limits that one rank cannot keep,
// and when a shard dies, falls silent or is told to stop.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <csignal>
#include <random>
#include <regex>
#include <string>

#include "partition/cost.hpp"
#include "runtime/json.hpp"
#include "runtime/model_config.hpp"
#include "tests/program/shared_runs.hpp"
#include "tests/rounds.hpp"

using namespace stagecoach::test;

namespace {

const std::string kModel =
    " --model synthetic:gpt2,n_layer=4,n_embd=32,n_head=2,n_positions=4000,vocab_size=300,seed=1,dtype=float32 ";

// Some of more than one segment of 1024 positions.
std::string prompts_of(std::mt19937& random) {
  std::string lines;
  for (const int length : {2500, 3, 1024, 1025, 60, 3900, 400, 1500}) {
    lines += "{\"tokens\":[7";
    for (int t = 1; t < length; ++t) lines += fmt::format(",{}", random() % 300);
    lines += fmt::format("],\"max_new_tokens\":{},\"num_samples\":{}}}\n", 1 + random() % 20, 1 + random() % 3);
  }
  return lines;
}

constexpr GridOption kGrids[] = {{0, "--context-shards 2"},
                                 {0, "--context-shards 3 --stages 2 --threads 1"},
                                 {2, "--context-shards 2"},
                                 {3, "--context-shards 3"},
                                 {4, "--context-shards 2 --threads 1"},
                                 {8, "--context-shards 2 --replicas 2 --threads 1"}};

std::string long_prompt(int tokens) {
  std::string line = "{\"tokens\":[1";
  for (int t = 1; t < tokens; ++t) line += fmt::format(",{}", t * 37 % 300);
  return line + "]}\n";
}

// Runs for minutes if nothing ends it, two stages of two shards.
std::string endless(const std::string& tag, int timeout_s) {
  return fmt::format(
      "bench --model synthetic:gpt2,n_layer=6,n_embd=96,n_head=3,vocab_size=500,seed={} --prompt-tokens 900 "
      "--new-tokens 100 --batch 16 --repeat 1000 --threads 1 --context-shards 2 -v --timeout {}",
      tag, timeout_s);
}

Ended run_with_signal(int signal, int victim, int timeout_s, double& seconds_after) {
  const std::string tag = fresh_tag();
  const auto loaded = [](const std::string& said) {
    for (int rank = 0; rank < 4; ++rank) {
      if (said.find(fmt::format("rank {} (stage {}, shard {}", rank, rank / 2, rank % 2)) == std::string::npos) {
        return false;
      }
    }
    return true;
  };
  const Signalled result = run_and_signal(4, endless(tag, timeout_s), tag, signal, victim, loaded,
                                          std::chrono::seconds(2));  // past the last agreement
  seconds_after = result.seconds_after;
  CHECK(all_gone(tag));
  return result.ended;
}

}  // namespace

TEST_CASE("every grid with context shards writes the file of one rank") {
  const unsigned seed = std::random_device{}();
  CAPTURE(seed);
  std::mt19937 random(seed);
  const ScratchFolder folder;
  const std::string output = folder / "o.jsonl";
  write_file(folder / "p.jsonl", prompts_of(random));
  for (const std::string& command : {"generate --temperature 0.9 --logprobs --ignore-eos" + kModel,
                                     "generate --logprobs --chunk-tokens 300 --kv-dtype float16" + kModel,
                                     "score --stride 1500 --dtype int8" + kModel}) {
    const std::string all = command + "--fresh --prompts " + (folder / "p.jsonl") + " --output " + output + " ";
    check_grids(all, output, kGrids, 120);
  }
}

// The whole of it with STAGECOACH_SLOW_TESTS: 131,072 tokens.
TEST_CASE("a prompt whose keys and values one rank may not hold runs over four shards") {
  const int tokens = slow_tests() ? 131072 : 24576;
  const ScratchFolder folder;
  write_file(folder / "p.jsonl", long_prompt(tokens - 4));
  // One block, so that no stage could take a part of it: 48 or 128 MiB of K and V.
  const std::string all = fmt::format(
      "generate --model "
      "synthetic:gpt2,n_layer=1,n_embd={0},n_head={1},n_inner=64,n_positions={2},vocab_size=300,seed=3,"
      "dtype=float16 --max-new-tokens 4 --logprobs --fresh -v --prompts {3} --output {4} ",
      slow_tests() ? 128 : 256, slow_tests() ? 2 : 4, tokens, folder / "p.jsonl", folder / "o.jsonl");
  // Beside what the process takes, which depends on the libraries of the build.
  const Ended hopeless = run_program(0, all + "--memory-per-rank 1MiB");
  std::smatch process;
  REQUIRE(std::regex_search(hopeless.err, process, std::regex("process ([0-9]+)\\.[0-9] MiB")));
  const int mib = std::stoi(process[1]) + (slow_tests() ? 110 : 50);
  const std::string budget = fmt::format("--memory-per-rank {}MiB ", mib);
  const Ended refused = run_program(0, all + budget);
  INFO(refused.err);
  CHECK(refused.status == 3);
  CHECK(refused.messages() == 1);
  CHECK(refused.says("--context-shards"));
  // Hardly a page more than the budget may be had from the system: 4 % are MPI's.
  const Ended ended = run_program(4, all + budget + "--context-shards 4 --threads 1", 900,
                                  fmt::format("ulimit -d {}; ", mib * 1024 * 104 / 100));
  INFO(ended.err);
  REQUIRE(ended.status == 0);
  const std::string sharded = read_file(folder / "o.jsonl");
  const std::regex peak("peak resident memory [^(]*\\(([0-9]+) bytes\\), planned [^(]*\\(([0-9]+) bytes\\)");
  int ranks = 0;
  for (std::sregex_iterator it(ended.err.begin(), ended.err.end(), peak), end; it != end; ++it, ++ranks) {
    CHECK(std::stoll((*it)[1]) <= std::stoll((*it)[2]));
    CHECK(std::stoll((*it)[2]) <= std::int64_t{mib} << 20);
  }
  CHECK(ranks == 4);
  REQUIRE(run_program(0, all, 900).status == 0);  // as much as it wants
  const bool same = read_file(folder / "o.jsonl") == sharded;
  CHECK(same);
}

TEST_CASE("shards send each other what the cost model says") {
  const ScratchFolder folder;
  constexpr std::int64_t kPrompt = 3500, kNew = 20, kChunk = 250;
  write_file(folder / "p.jsonl", long_prompt(kPrompt));
  for (const int shards : {2, 3}) {
    const Ended ended = run_program(
        shards,
        fmt::format("generate{}--fresh --prompts {} --output {} --max-new-tokens {} --chunk-tokens {} --metrics {} "
                    "--context-shards {} --threads 1",
                    kModel, folder / "p.jsonl", folder / "o.jsonl", kNew, kChunk, folder / "m.json", shards));
    REQUIRE(ended.status == 0);
    stagecoach::ModelConfig model;
    model.n_embd = 32;
    model.n_head = 2;
    const stagecoach::ShardCost cost{shards, {}, 1024, 4};
    double expected = 0.0;
    for (std::int64_t at = 0; at < kPrompt; at += kChunk) {
      expected += exchange_bytes(model, stagecoach::prompt_chunk(at, std::min(kChunk, kPrompt - at)), cost);
    }
    for (std::int64_t t = 0; t + 1 < kNew; ++t) {
      expected += exchange_bytes(model, stagecoach::decode_step(1, kPrompt + t), cost);
    }
    double sent = 0.0;
    const stagecoach::Json metrics = stagecoach::parse_json(read_file(folder / "m.json"));
    for (const stagecoach::Json& rank : *metrics.find("ranks")->array()) {
      sent += static_cast<double>(*rank.find("shard_bytes_sent")->integer());
    }
    CHECK(sent == doctest::Approx(4 * expected).epsilon(0.03));  // of 4 blocks
  }
}

TEST_CASE("a killed shard ends the job, a stopped one is named, a signal interrupts") {
  double seconds = 0.0;
  for (const int victim : {1, 3}) {
    const Ended killed = run_with_signal(SIGKILL, victim, 60, seconds);
    INFO(killed.err);
    CHECK(killed.status == 137);
    CHECK(seconds < on_this_machine(10.0));
  }
  for (const int victim : {1, 2}) {
    const Ended stopped = run_with_signal(SIGSTOP, victim, 4, seconds);
    INFO(stopped.err);
    CHECK(stopped.status == 1);
    CHECK(stopped.says(
        fmt::format("heard nothing from rank {} (stage {}, shard {}, host ", victim, victim / 2, victim % 2)));
    const std::size_t first = stopped.err.find("heard nothing");
    CHECK(stopped.err.find("heard nothing", first + 1) == std::string::npos);
    CHECK(seconds < on_this_machine(20.0));
  }
  const Ended told = run_with_signal(SIGUSR1, 1, 60, seconds);
  INFO(told.err);
  CHECK(told.says("interrupted"));
  CHECK(told.status == 75);
  CHECK(seconds < on_this_machine(15.0));
}

TEST_CASE("shards that cannot be are refused once") {
  const auto refused = [](int ranks, const std::string& options, const std::string& message) {
    const Ended ended = run_program(ranks, "generate --prompt x" + kModel + options);
    INFO(ended.err);
    CHECK(ended.status == 2);
    CHECK(ended.messages() == 1);
    CHECK(ended.says(message));
  };
  refused(3, "--context-shards 2", "3 ranks are not stages of 2 context shards each; start a multiple of 2 ranks");
  refused(4, "--context-shards 2 --stages 4", "4 ranks but 4 stages of 2 context shards; start 8 ranks");
  refused(0, "--context-shards 0", "--context-shards: 0 is not a number from 1");
}
