// `stagecoach plan`: in about a second, from headers alone, what runs and what does not; and what it writes runs.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include "runtime/json.hpp"
#include "tests/program/run_program.hpp"

using namespace stagecoach::test;

namespace {

const std::string kTiny = "synthetic:gpt2,n_layer=6,n_embd=32,n_head=2,n_positions=300,vocab_size=90,seed=1";

std::int64_t whole(const stagecoach::Json& object, const char* field) {
  REQUIRE(object.find(field) != nullptr);
  REQUIRE(object.find(field)->integer() != nullptr);
  return *object.find(field)->integer();
}

}  // namespace

TEST_CASE("a plan for replicas, written, runs as one") {
  const ScratchFolder folder;
  const std::string model =
      " --model synthetic:gpt2,n_layer=4,n_embd=64,n_head=2,n_positions=128,vocab_size=300,seed=2 ";
  write_file(folder / "p.jsonl", "{\"tokens\":[1,2,3]}\n{\"tokens\":[4]}\n{\"tokens\":[5,6]}\n");
  const Ended planned = run_program(
      0, "plan --replicas 2 --stages 2 --batch 5 --context 60 --new-tokens 8 --write " + (folder / "run.yaml") + model);
  INFO(planned.err);
  REQUIRE(planned.status == 0);
  CHECK(planned.out.find("2 replicas of this pipeline:\n2 stages, 2 microbatches in flight; 3 sequences") !=
        std::string::npos);
  CHECK(read_file(folder / "run.yaml").find("start 4 ranks") != std::string::npos);
  const std::string generate = "generate --max-new-tokens 8 --fresh --prompts " + (folder / "p.jsonl") + " --output ";
  REQUIRE(run_program(0, generate + (folder / "a.jsonl") + model).status == 0);
  const std::string run = generate + (folder / "b.jsonl") + " -v --config " + (folder / "run.yaml");
  for (const int ranks : {0, 4}) {
    const Ended ended = run_program(ranks, run);
    INFO(ended.err);
    CHECK(ended.status == 0);
    CHECK(ended.says("samples by replica: "));
    CHECK(read_file(folder / "b.jsonl") == read_file(folder / "a.jsonl"));
  }
  CHECK(run_program(2, run).says("2 ranks but 2 replicas of 2 stages; start 4 ranks"));
}

TEST_CASE("a prompt that no device can hold is refused with the numbers, and planned over four") {
  const std::string plan =
      "plan --model synthetic:gpt2-xl,n_positions=16384,dtype=float16 --kv-dtype float16 --context 16064 "
      "--memory-per-rank 4GiB ";
  const Ended one = run_program(0, plan);
  INFO(one.out << one.err);
  CHECK(one.status == 3);
  CHECK(one.out.empty());
  CHECK(one.messages() == 1);
  CHECK(one.says("stage 0 (blocks 0 to 47) needs "));
  CHECK(one.says("available 4.0 GiB"));
  CHECK(one.says("what would fit: --context "));
  CHECK(one.says("stages of such devices"));
  CHECK(one.seconds < on_this_machine(20.0));  // a second or two on a machine of its own
  const Ended four = run_program(0, plan + "--stages 4");
  INFO(four.out << four.err);
  CHECK(four.status == 0);
  CHECK(four.out.find("4 stages, 4 microbatches in flight") != std::string::npos);
  CHECK(four.out.find("room: 1 sequence") != std::string::npos);
}

TEST_CASE("what would fit does fit, and a little more does not") {
  const std::string plan = "plan --model synthetic:gpt2-xl,n_positions=16384,dtype=float16 --memory-per-rank 4GiB ";
  const Ended refused = run_program(0, plan + "--context 16000");
  REQUIRE(refused.status == 3);
  const std::size_t at = refused.err.find("--context ");
  REQUIRE(at != std::string::npos);
  const std::int64_t context = std::stoll(refused.err.substr(at + 10));
  CHECK(run_program(0, fmt::format("{}--context {} --new-tokens 8 --chunk-tokens 16", plan, context)).status == 0);
  CHECK(run_program(0, fmt::format("{}--context {} --new-tokens 8", plan, context + 600)).status == 3);
}

TEST_CASE("what plan writes, generate runs: the same tokens as without") {
  const ScratchFolder folder;
  write_file(folder / "p.jsonl",
             "{\"tokens\": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]}\n");
  const Ended plan =
      run_program(0, fmt::format("plan --model {} --stages 3 --context 250 --batch 2 --write {} --svg {} --json", kTiny,
                                 folder / "r.yaml", folder / "d.svg"));
  INFO(plan.err);
  REQUIRE(plan.status == 0);
  const stagecoach::Json json = stagecoach::parse_json(plan.out);
  CHECK(whole(json, "sequences") == 2);
  CHECK(whole(json, "positions") == 250);
  CHECK(read_file(folder / "d.svg").starts_with("<svg "));
  const auto tokens = [&](const std::string& options, int ranks) {
    const Ended ended =
        run_program(ranks, fmt::format("generate --fresh --prompts {} --max-new-tokens 9 --logprobs --output {} {}",
                                       folder / "p.jsonl", folder / "o.jsonl", options));
    INFO(ended.err);
    CHECK(ended.status == 0);
    return read_file(folder / "o.jsonl");
  };
  const std::string expected = tokens(fmt::format("--model {}", kTiny), 0);
  CHECK(tokens(fmt::format("--config {}", folder / "r.yaml"), 0) == expected);
  CHECK(tokens(fmt::format("--config {}", folder / "r.yaml"), 3) == expected);
  CHECK(tokens(fmt::format("--model {} --stages 2 --chunk-tokens 7,5,2", kTiny), 0) == expected);
}

TEST_CASE("runs balance their stages by themselves, by measured speeds where they are told") {
  const ScratchFolder folder;
  write_file(folder / "p.jsonl", "{\"tokens\": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17]}\n");
  write_file(folder / "m.yaml",
             "devices:\n  - {bandwidth_gb_s: 10, compute_gflop_s: 100}\n"
             "  - {bandwidth_gb_s: 90, compute_gflop_s: 900}\n");
  const auto run = [&](const std::string& options, int ranks) {
    const Ended ended = run_program(
        ranks, fmt::format("generate --fresh --model {} --prompts {} --max-new-tokens 9 --logprobs --output {} -v {}",
                           kTiny, folder / "p.jsonl", folder / "o.jsonl", options));
    INFO(ended.err);
    CHECK(ended.status == 0);
    return ended;
  };
  run("--stages auto", 0);
  const std::string expected = read_file(folder / "o.jsonl");
  CHECK(run("--stages auto", 2).says("prompts travel in chunks of "));
  CHECK(read_file(folder / "o.jsonl") == expected);
  const Ended measured = run(fmt::format("--machine {}", folder / "m.yaml"), 2);
  CHECK(measured.says("blocks 0 to 0,"));
  CHECK(measured.says("blocks 1 to 5,"));
  CHECK(read_file(folder / "o.jsonl") == expected);

  write_file(folder / "m.yaml", "devices:\n  - {bandwidth_gb_s: 3, compute_gflop: 3}\n");
  const Ended refused = run_program(
      2, fmt::format("generate --model {} --prompts {} --machine {}", kTiny, folder / "p.jsonl", folder / "m.yaml"));
  INFO(refused.err);
  CHECK(refused.status == 2);
  CHECK(refused.messages() == 1);
  CHECK(refused.says("m.yaml:2:25: compute_gflop: unknown key"));
}

TEST_CASE("measured machines are what plans are made of") {
  const ScratchFolder folder;
  for (const int ranks : {0, 2}) {
    const Ended profile =
        run_program(ranks, fmt::format("profile --model {} --output {}", kTiny, folder / "m.yaml"), 120);
    INFO(profile.err);
    REQUIRE(profile.status == 0);
    CHECK(read_file(folder / "m.yaml").find("product_ps: [[1, ") != std::string::npos);
    const Ended plan = run_program(
        0, fmt::format("plan --model {} --machine {} --stages auto --batch 4 --context 100", kTiny, folder / "m.yaml"));
    INFO(plan.err);
    CHECK(plan.status == 0);
    CHECK(plan.out.find("speeds from the machine file") != std::string::npos);
    CHECK(plan.out.find("other ways to use the devices") != std::string::npos);
  }
}

TEST_CASE("plans of GPUs need none, and mistakes are found where they stand") {
  const ScratchFolder folder;
  const Ended gpus = run_program(
      0,
      "plan --model synthetic:gpt2-xl,dtype=float16 --device cuda --stages 8 --memory-per-rank 2GiB --batch 8 --json");
  INFO(gpus.err);
  REQUIRE(gpus.status == 0);
  CHECK(gpus.out.find("\"kv_dtype\": \"float16\"") != std::string::npos);
  const auto refused = [&](const std::string& arguments, const std::string& says) {
    const Ended ended = run_program(0, "plan " + arguments);
    INFO(ended.err);
    CHECK(ended.status == 2);
    CHECK(ended.messages() == 1);
    CHECK(ended.says(says));
  };
  refused("--model synthetic:gpt2 --context 2000", "--context 2000 is more than the model's 1024 positions");
  refused("--model synthetic:gpt2 --stages 13", "13 stages but the model has only 12 blocks");
  refused("--model synthetic:gpt2 --stages auto", "--stages: auto chooses among the devices of a machine file");
  refused("--model synthetic:gpt2 --device cuda --dtype int8", "--dtype: int8 weights are for CPUs");
  write_file(folder / "m.yaml", "devices:\n  - {bandwidth_gb_s: 3, compute_gflop: 3}\n");
  refused(fmt::format("--model synthetic:gpt2 --machine {}", folder / "m.yaml"),
          "m.yaml:2:25: compute_gflop: unknown key");
  refused(fmt::format("--model synthetic:gpt2 --machine {}", folder / "none.yaml"), "cannot open the machine file");
}

TEST_CASE("hosts of stages are in the plan, go into what it writes, and are looked for when it runs") {
  const ScratchFolder folder;
  write_file(folder / "r.yaml",
             "model: '" + kTiny +
                 "'\npipeline:\n  stages:\n    - {blocks: [0, 2], host: no-such-host}\n    - {blocks: [3, 5]}\n");
  const Ended plan = run_program(0, fmt::format("plan --config {} --write {}", folder / "r.yaml", folder / "w.yaml"));
  INFO(plan.err);
  REQUIRE(plan.status == 0);
  CHECK(plan.out.find("cpu on no-such-host") != std::string::npos);
  CHECK(read_file(folder / "w.yaml").find("- {blocks: [0, 2], host: 'no-such-host'") != std::string::npos);
  write_file(folder / "p.jsonl", "{\"tokens\": [1, 2, 3]}\n");
  for (const int ranks : {0, 2}) {
    const Ended ended =
        run_program(ranks, fmt::format("generate --prompts {} --config {}", folder / "p.jsonl", folder / "w.yaml"));
    INFO(ended.err);
    CHECK(ended.status == 2);
    CHECK(ended.messages() == 1);
    CHECK(ended.says(": host: the stages want 1 rank on no-such-host, but "));
    CHECK(ended.says(ranks == 0 ? "but all stages are in one process on " : "but there are 2 ranks on "));
    CHECK(ended.says("; mpirun -n 2 --host no-such-host:1,"));
  }
}
