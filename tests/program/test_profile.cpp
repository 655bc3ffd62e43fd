// bench --profile: one set of tables per stage, in order, however the stages are run.
// (Chunks of 6 leave no prompt with one row for its last microbatch, which would count as decode.)
#include <doctest/doctest.h>
#include <fmt/format.h>

#include "tests/program/run_program.hpp"
#include "tests/program/shared_runs.hpp"

using namespace stagecoach::test;

namespace {

const std::string kBench =
    "bench --model synthetic:gpt2,n_layer=4,n_embd=48,n_head=3,n_positions=40,vocab_size=90,seed=5 --threads 1 "
    "--prompt-tokens 7 --new-tokens 4 --batch 3 --repeat 2 --chunk-tokens 6";

// The operations in the tables of one stage; empty when they are not there once or not behind those before.
std::string tables_of(const std::string& out, int stage, int stages) {
  const std::string heading = fmt::format("stage {} (blocks ", stage);
  if (times_in(out, heading) != 2) return "";  // prefill, decode
  const std::size_t begin = out.find(heading);
  const std::size_t end =
      stage + 1 == stages ? out.size() : out.find(fmt::format("stage {} (blocks ", stage + 1), begin);
  return end == std::string::npos ? "" : out.substr(begin, end - begin);
}

void check_profile(int ranks, const std::string& more, int stages) {
  CAPTURE(ranks);
  CAPTURE(more);
  const Ended ended = run_program(ranks, kBench + " --profile " + more);
  INFO(ended.err);
  INFO(ended.out);
  CHECK(ended.status == 0);
  CHECK(ended.err == "");
  CHECK(times_in(ended.out, " tokens/s\n") == 2);
  CHECK(times_in(ended.out, "(blocks ") == 2 * stages);
  const int blocks = 4 / stages;
  for (int stage = 0; stage < stages; ++stage) {
    const std::string tables = tables_of(ended.out, stage, stages);
    INFO("stage " << stage);
    CHECK(tables.starts_with(
        fmt::format("stage {} (blocks {} to {}), prefill: ", stage, stage * blocks, (stage + 1) * blocks - 1)));
    // Every row of the two repeats and none of the one before them: 3 prompts of 7, then 3 more tokens of each.
    CHECK(times_in(tables, "prefill: 42 rows in ") == 1);
    CHECK(times_in(tables, "decode (one row of each sequence): 18 rows in ") == 1);
    for (const char* operation : {"  linear 48 x 144 ", "  linear 48 x 48 ", "  linear 48 x 192 gelu tanh ",
                                  "  linear 192 x 48 ", "  attention ", "  layer norm ", "  between operations "}) {
      CAPTURE(operation);
      CHECK(times_in(tables, operation) == 2);
    }
    CHECK(times_in(tables, "  embed ") == (stage == 0 ? 2 : 0));
    CHECK(times_in(tables, "  linear 48 x 90 ") == (stage == stages - 1 ? 2 : 0));
    CHECK(times_in(tables, "  before microbatches (") == 2);
  }
}

}  // namespace

TEST_CASE("every stage has its tables once and in order, in one process and under mpirun") {
  check_profile(0, "", 1);
  check_profile(0, "--stages 2", 2);
  check_profile(1, "", 1);
  check_profile(2, "", 2);
  check_profile(4, "", 4);
}

TEST_CASE("there is no decode without a second token, and no table unless asked for") {
  const std::string bench =
      "bench --model synthetic:gpt2,n_layer=2,n_embd=16,n_head=2,n_positions=40,vocab_size=90 --prompt-tokens 7 "
      "--new-tokens 1 --repeat 1 ";
  const Ended prefill = run_program(0, bench + "--profile");
  CHECK(prefill.status == 0);
  CHECK(times_in(prefill.out, "(blocks ") == 1);
  CHECK(times_in(prefill.out, "prefill: 7 rows in 1 microbatches") == 1);
  const Ended plain = run_program(2, bench);
  CHECK(plain.status == 0);
  CHECK(times_in(plain.out, "(blocks ") == 0);
}

TEST_CASE("the JSON file is the same with and without a profile, and other commands have none") {
  const ScratchFolder folder;
  const auto keys_of = [&](const std::string& more) {
    const Ended ended = run_program(2, kBench + " --json " + (folder / "b.json") + more);
    INFO(ended.err);
    CHECK(ended.status == 0);
    std::string keys;
    bool quoted = false;
    for (const char c : read_file(folder / "b.json")) {
      if (c == '"') quoted = !quoted;
      if (quoted) keys += c;
    }
    return keys;
  };
  CHECK(keys_of(" --profile") == keys_of(""));
  const Ended generate = run_program(0, "generate --model synthetic:gpt2 --prompt x --profile");
  CHECK(generate.status == 2);
  CHECK(generate.says("--profile: this command has no such option"));

  // A run file may serve several commands: what bench is told there says nothing to generate.
  write_file(folder / "run.yaml", "bench: {profile: true}\n");
  write_file(folder / "p.jsonl", "{\"tokens\": [1, 2], \"max_new_tokens\": 2}\n");
  const Ended other = run_program(
      0, "generate --model synthetic:gpt2,n_layer=1,n_embd=8,n_head=1,n_positions=9,vocab_size=20 --config " +
             (folder / "run.yaml") + " --prompts " + (folder / "p.jsonl"));
  INFO(other.err);
  CHECK(other.status == 0);
  CHECK(times_in(other.out, "(blocks ") == 0);
}
