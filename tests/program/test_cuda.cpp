// GPUs as users meet them: which are taken, what is refused and how it is said. On emulated ones; a GPU-less machine's
// messages come from the real program.
#include <doctest/doctest.h>

#include <cstdlib>

#include "tests/program/run_program.hpp"

using namespace stagecoach::test;

namespace {

const std::string kModel = " --model synthetic:gpt2,n_layer=4,n_embd=64,n_head=2,n_positions=128,vocab_size=90,seed=5";

std::string completions(const Ended& ended, const std::string& file) {
  INFO(ended.err);
  CHECK(ended.status == 0);
  return read_file(file);
}

}  // namespace

TEST_CASE("a program with a GPU says so, and computes there by itself") {
  CHECK(run_emulated(0, "--version").out.find("; CUDA ") != std::string::npos);
  const ScratchFolder folder;
  write_file(folder / "p.jsonl", "{\"tokens\": [1, 2, 3]}\n{\"tokens\": [7, 7, 60, 4, 11, 80, 2]}\n");
  const std::string output = folder / "out.jsonl";
  // In float32 both devices agree on every greedy token.
  const std::string common = "generate" + kModel +
                             ",dtype=float32 --kv-dtype float32 --max-new-tokens 12 --fresh --prompts " +
                             (folder / "p.jsonl") + " --output " + output;
  const std::string on_cpu = completions(run_program(0, common), output);
  const Ended alone = run_emulated(0, common + " -v");
  CHECK(alone.says("cuda (Emulated device, device 0)"));
  CHECK(completions(alone, output) == on_cpu);
  CHECK(completions(run_emulated(0, common + " --device cpu"), output) == on_cpu);
  CHECK(completions(run_emulated(0, common + " --device cuda:0 --stages 3 --deterministic"), output) == on_cpu);
  const Ended ranks = run_emulated(2, common + " --device cuda:0 -v");
  CHECK(ranks.says("(stage 1, "));
  CHECK(ranks.says("cuda (Emulated device, device 0)"));
  CHECK(completions(ranks, output) == on_cpu);
  const Ended checked = run_emulated(2, common + " --device cuda:0 --dtype float16 --check");
  INFO(checked.err);
  CHECK(checked.status == 0);
}

TEST_CASE("ranks with a GPU each hand rows on over NCCL") {
  CHECK(run_emulated(0, "--version").out.find("; NCCL 2.") != std::string::npos);
  const ScratchFolder folder;
  write_file(folder / "p.jsonl", "{\"tokens\": [1, 2, 3]}\n{\"tokens\": [7, 7, 60, 4, 11, 80, 2]}\n");
  const std::string output = folder / "out.jsonl";
  const std::string common = "generate" + kModel +
                             ",dtype=float32 --kv-dtype float32 --max-new-tokens 12 --fresh --prompts " +
                             (folder / "p.jsonl") + " --output " + output + " -v";
  const Ended on_hosts = run_program(2, common);
  const std::string on_cpu = completions(on_hosts, output);
  CHECK(on_hosts.says("rows come from stage 0 over MPI, on one host"));
  const std::string several = "devices=4";
  const Ended two = run_emulated(2, common, 60, several);
  CHECK(completions(two, output) == on_cpu);
  CHECK(two.says("rows come from stage 0 over NCCL 2."));
  CHECK(two.says("between GPUs that reach each other (NVLink or PCIe)"));
  CHECK(two.says("cuda (Emulated device, device 1)"));
  write_file(folder / "run.yaml", "transport: nccl\n");
  const Ended four = run_emulated(4, common + " --config " + (folder / "run.yaml"), 60, several);
  CHECK(completions(four, output) == on_cpu);
  CHECK(four.says("rows come from stage 1 over NCCL 2."));
  CHECK(four.says("through its memory, since the GPUs do not reach each other"));
  const Ended over_mpi = run_emulated(2, common + " --transport mpi", 60, several);
  CHECK(completions(over_mpi, output) == on_cpu);
  CHECK(over_mpi.says("rows come from stage 0 over MPI, on one host"));
  CHECK(completions(run_emulated(2, common + " --transport nccl --check", 60, several), output) == on_cpu);
}

TEST_CASE("NCCL where it cannot be is refused in one line") {
  const std::string generate = "generate" + kModel + " --prompts /dev/null --transport nccl ";
  const auto refused = [&](const Ended& ended, int status, const std::string& text) {
    INFO(ended.err);
    CHECK(ended.status == status);
    CHECK(ended.messages() == 1);
    CHECK(ended.says(text));
    CHECK(ended.says("--transport"));
    CHECK(ended.seconds < on_this_machine(20));
  };
  refused(run_emulated(2, generate + "--device cuda:0"), 2, "NCCL refuses ranks that share a GPU");
  refused(run_emulated(2, generate + "--device cpu"), 2, "not every stage computes on a GPU");
  refused(run_emulated(0, generate + "--device cuda:0 --stages 2"), 2, "stages of one process share its memory");
  // NCCL itself finds that the two are one, since they say the same.
  const ScratchFolder folder;
  write_file(folder / "p.jsonl", "{\"tokens\": [1, 2, 3]}\n");
  setenv("NCCL_HOSTID", "here", 1);
  const Ended same =
      run_emulated(2, "generate" + kModel + " --transport nccl --device cuda:0 --prompts " + (folder / "p.jsonl"));
  unsetenv("NCCL_HOSTID");
  INFO(same.err);
  CHECK(same.status == 1);
  CHECK(same.messages() == 1);
  CHECK(same.says("link from rank 0 (stage 0, host "));
  CHECK(same.says("NCCL: invalid usage"));
}

TEST_CASE("what GPUs cannot do is refused in one line") {
  const std::string generate = "generate" + kModel + " --prompts /dev/null ";
  const auto refused = [&](const Ended& ended, int status, const std::string& text) {
    INFO(ended.err);
    CHECK(ended.status == status);
    CHECK(ended.messages() == 1);
    CHECK(ended.says(text));
    CHECK(ended.seconds < on_this_machine(10));
  };
  refused(run_program(0, generate + "--device cuda"), 2, "--device cpu");
  refused(run_program(3, generate + "--device cuda"), 2, "--device cpu");
  refused(run_program(0, generate + "--device cuda:1"), 2, "--device cpu");
  refused(run_program(0, generate + "--device gpu"), 2, "gpu is not auto, cpu, cuda or cuda:N");
  refused(run_emulated(0, generate + "--device cuda:1"), 2, "there is no GPU 1; this rank sees 1");
  refused(run_emulated(0, generate + "--dtype int8"), 2, "int8 weights are for CPUs");
  refused(run_emulated(0, generate + "--stages 2"), 2, "2 stages compute on one GPU");
  refused(run_emulated(2, generate), 2, "2 ranks compute on one GPU");
  refused(run_emulated(2, generate), 2, "--device cuda:0");
  const ScratchFolder folder;
  write_file(folder / "p.jsonl", "{\"tokens\": [1, 2, 3]}\n");
  const std::string large = "generate --model synthetic:gpt2-xl,dtype=float32 --prompts " + (folder / "p.jsonl") + " ";
  refused(run_emulated(0, large), 3, "does not fit in memory");
  refused(run_emulated(2, large + "--device cuda:0"), 3, "does not fit in memory");
}

TEST_CASE("each rank takes the GPU of its number on its host") {
  const ScratchFolder folder;
  write_file(folder / "p.jsonl", "{\"tokens\": [1, 2, 3]}\n");
  const std::string generate = "generate" + kModel + " --max-new-tokens 3 --fresh -v --prompts " +
                               (folder / "p.jsonl") + " --output " + (folder / "o.jsonl");
  const Ended two = run_emulated(2, generate, 60, "devices=2");
  INFO(two.err);
  CHECK(two.status == 0);
  CHECK(two.says("cuda (Emulated device, device 0)"));
  CHECK(two.says("cuda (Emulated device, device 1)"));
  const Ended stages = run_emulated(0, generate + " --stages 2", 60, "devices=2");
  INFO(stages.err);
  CHECK(stages.status == 0);
  CHECK(stages.says("cuda (Emulated device, device 1)"));
  CHECK(run_emulated(3, generate, 60, "devices=2").says("2 ranks compute on one GPU"));
}

TEST_CASE("no driver, no GPU, a GPU too small, a GPU that breaks: one line and the right status") {
  const ScratchFolder folder;
  write_file(folder / "p.jsonl", "{\"tokens\": [1, 2, 3]}\n");
  const std::string output = folder / "o.jsonl";
  const std::string generate = "generate" + kModel + " --ignore-eos --max-new-tokens 100 --fresh --prompts " +
                               (folder / "p.jsonl") + " --output " + output + " ";
  const auto ends = [&](const Ended& ended, int status, const std::string& text) {
    INFO(ended.err);
    CHECK(ended.status == status);
    CHECK(ended.messages() == (status == 0 ? 0 : 1));
    CHECK(ended.says(text));
    CHECK((status == 0) == std::filesystem::exists(output));
    std::filesystem::remove(output);
  };
  for (const int ranks : {0, 2}) {
    for (const std::string machine : {"driver=0", "devices=0"}) {
      ends(run_emulated(ranks, generate + "--device cuda:0", 60, machine), 2, "no CUDA device: ");
      ends(run_emulated(ranks, generate, 60, machine), 0, "");  // the CPU is asked for nothing
    }
    ends(run_emulated(ranks, generate + "--device cuda:0", 60, "memory_mib=2"), 3, "does not fit in memory");
    for (const int call : {900, 1500}) {
      const std::string machine = "fail=" + std::to_string(call) + (ranks == 2 ? " rank=1" : "");
      ends(run_emulated(ranks, generate + "--device cuda:0", 60, machine), 1,
           "CUDA: an illegal memory access was encountered");
    }
  }
}

TEST_CASE("a budget is the size of a GPU's pool, for each stage its own") {
  const ScratchFolder folder;
  write_file(folder / "p.jsonl", "{\"tokens\": [1, 2, 3]}\n{\"tokens\": [7, 7, 60, 4, 11, 80, 2]}\n");
  const std::string output = folder / "out.jsonl";
  const std::string common = "generate --fresh -v" + kModel + ",dtype=float32 --max-new-tokens 12 --prompts " +
                             (folder / "p.jsonl") + " --output " + output + " ";
  const std::string expected = completions(run_emulated(0, common), output);
  const Ended small = run_emulated(0, common + "--memory-per-rank 16MiB");
  CHECK(small.says("of 16.0 MiB"));
  CHECK(completions(small, output) == expected);
  const auto stages = [&](const std::string& second) {
    write_file(folder / "run.yaml",
               "pipeline: {stages: [{blocks: [0, 1], device: \"cuda:0\", memory: 64MiB}, "
               "{blocks: [2, 3], device: \"cuda:0\", memory: " +
                   second + "}]}\n");
    return common + "--config " + (folder / "run.yaml");
  };
  for (const int ranks : {0, 2}) {
    const Ended refused = run_emulated(ranks, stages("300KiB"));
    INFO(refused.err);
    CHECK(refused.status == 3);
    CHECK(refused.messages() == 1);
    CHECK(refused.says("stage 1 (blocks 2 to 3) needs "));
    CHECK(refused.says("available 300.0 KiB"));
    const Ended fits = run_emulated(ranks, stages("40MiB"));
    CHECK(fits.says("of 64.0 MiB"));
    CHECK(fits.says("of 40.0 MiB"));
    CHECK(completions(fits, output) == expected);
  }
}
