// What users get wrong: one message, the right status, no hang, alone and under mpirun.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <array>

#include "tests/program/run_program.hpp"

using namespace stagecoach::test;

namespace {

const std::string kTiny = "synthetic:gpt2,n_layer=3,n_embd=16,n_head=2,n_positions=40,vocab_size=50,seed=1";
const std::string kGoldenBase = STAGECOACH_SOURCE_DIR "/tests/golden/data/base";

struct Mistake {
  std::string arguments;
  int status;
  std::string says;
};

void expect(const Mistake& mistake) {
  for (const int ranks : {0, 3}) {
    const Ended ended = run_program(ranks, mistake.arguments);
    INFO(ranks << " ranks: " << mistake.arguments << "\nout: " << ended.out << "\nerr: " << ended.err);
    CHECK(ended.status == mistake.status);
    CHECK(ended.messages() == 1);
    CHECK(ended.says(mistake.says));
    CHECK(ended.seconds < 10.0);
  }
}

// A copy of the golden model with one file changed.
void copy_model(const ScratchFolder& folder) {
  for (const char* name : {"config.json", "model.safetensors"}) {
    std::filesystem::copy_file(kGoldenBase + "/" + name, folder / name);
  }
}

}  // namespace

TEST_CASE("wrong usage") {
  const std::array mistakes{
      Mistake{"", 2, "--help"},
      Mistake{"generat --model x", 2, "generate"},
      Mistake{"generate --model " + kTiny, 2, "--prompt"},
      Mistake{"generate --prompt x", 2, "--model"},
      Mistake{"generate --model " + kTiny + " --prompt x --max-new-token 3", 2, "--max-new-tokens"},
      Mistake{"generate --model " + kTiny + " --prompt x --max-new-tokens -3", 2, "--max-new-tokens"},
      Mistake{"generate --model " + kTiny + " --prompt x --threads nan", 2, "--threads"},
      Mistake{"generate --model " + kTiny + " --prompt x --temperature hot", 2, "temperature"},
      Mistake{"generate --model " + kTiny + " --prompt x --dtype int8", 2, "int8"},
      Mistake{"generate --model " + kTiny + " --prompt x --dtype float63", 2, "dtype"},
      Mistake{"generate --model " + kTiny + " --prompt x --config /does/not/exist.yaml", 2, "/does/not/exist.yaml"},
      Mistake{"bench --model " + kTiny + " --prompt-tokens 100", 2, "40"},
  };
  for (const Mistake& mistake : mistakes) expect(mistake);
}

TEST_CASE("models that cannot be used") {
  expect({"generate --model /does/not/exist --prompt x", 2, "/does/not/exist"});
  expect({"generate --model synthetic:gpt3 --prompt x", 2, "gpt3"});
  expect({"generate --model " + kTiny + " --prompt x", 2, "token"});  // text, but the model has no vocabulary
  const ScratchFolder folder;
  copy_model(folder);
  const std::string arguments = "generate --model " + folder.path().string() + " --prompts " + (folder / "p.jsonl");
  write_file(folder / "p.jsonl", "{\"tokens\": [1, 2]}\n");
  const std::string weights = read_file(folder / "model.safetensors");
  write_file(folder / "model.safetensors", weights.substr(0, weights.size() - 5));
  expect({arguments, 2, "model.safetensors"});
  write_file(folder / "model.safetensors", weights.substr(0, 100));
  expect({arguments, 2, "model.safetensors"});
  std::string renamed = weights;
  renamed.replace(renamed.find("h.1.ln_1.bias"), 13, "h.1.ln_1.bios");
  write_file(folder / "model.safetensors", renamed);
  expect({arguments, 2, "h.1.ln_1"});
  write_file(folder / "model.safetensors", weights.substr(0, weights.size() - 4) + std::string("\0\0\xc0\x7f", 4));
  expect({arguments, 2, "is nan, no finite number"});
  write_file(folder / "model.safetensors", weights);
  CHECK(run_program(0, arguments).status == 0);
  write_file(folder / "config.json", "{\"n_layer\": 3,");
  expect({arguments, 2, "config.json"});
  write_file(folder / "config.json", "{\"n_layer\": 3, \"n_head\": 5, \"n_embd\": 21}");
  expect({arguments, 2, "n_embd"});
  std::filesystem::remove(folder / "config.json");
  expect({arguments, 2, "config.json"});
}

// One byte changed, on which libhdf5 1.10 crashes: an error of a run with MPI like any other.
TEST_CASE("a damaged HDF5 file is one error") {
  const ScratchFolder folder;
  std::string file = read_file(STAGECOACH_SOURCE_DIR "/tests/golden/data/keras_base/tf_model.h5");
  file[2139] = 1;
  write_file(folder / "m.h5", file);
  expect({"bench --model " + (folder / "m.h5") + " --prompt-tokens 4 --new-tokens 2", 2, "m.h5"});
}

TEST_CASE("prompts that cannot be used are named by line, before anything runs") {
  const ScratchFolder folder;
  const std::string arguments =
      "generate --model " + kTiny + " --prompts " + (folder / "p.jsonl") + " --output " + (folder / "o.jsonl");
  const std::string good = "{\"tokens\": [1, 2]}\n";
  write_file(folder / "p.jsonl", good + "{\"tokens\": []}\n");
  expect({arguments, 2, "p.jsonl:2"});
  write_file(folder / "p.jsonl", good + good + "{\"tokens\": [1, 50]}\n");
  expect({arguments, 2, "p.jsonl:3"});
  write_file(folder / "p.jsonl", good + "{\"tokens\": [1\n");
  expect({arguments, 2, "p.jsonl:2"});
  write_file(folder / "p.jsonl", good + "{\"tokens\": [1], \"max_new_tokns\": 3}\n");
  expect({arguments, 2, "max_new_tokens"});
  std::string many = "1";
  for (int i = 0; i < 40; ++i) many += ", 1";
  write_file(folder / "p.jsonl", good + "{\"tokens\": [" + many + "]}\n");
  expect({arguments, 2, "--long-prompt truncate"});
  CHECK(!std::filesystem::exists(folder / "o.jsonl"));
  CHECK(run_program(0, arguments + " --long-prompt truncate").status == 0);
  expect({"generate --model " + kTiny + " --prompts " + (folder / "missing.jsonl"), 2, "missing.jsonl"});
}

TEST_CASE("more ranks than blocks, and stages that do not match the ranks") {
  const Ended ended = run_program(5, "bench --model " + kTiny + " --prompt-tokens 4 --new-tokens 2");
  INFO(ended.err);
  CHECK(ended.status == 2);
  CHECK(ended.messages() == 1);
  CHECK(ended.says("3 blocks"));
  const Ended loopback = run_program(0, "bench --model " + kTiny + " --prompt-tokens 4 --new-tokens 2 --stages 4");
  CHECK(loopback.status == 2);
  CHECK(loopback.says("3 blocks"));
  const Ended other = run_program(3, "bench --model " + kTiny + " --prompt-tokens 4 --new-tokens 2 --stages 2");
  INFO(other.err);
  CHECK(other.status == 2);
  CHECK(other.messages() == 1);
  CHECK(other.says("mpirun -n 2"));
}

TEST_CASE("run files that do not fit the model") {
  const ScratchFolder folder;
  const std::string arguments =
      "bench --model " + kTiny + " --prompt-tokens 4 --new-tokens 2 --config " + (folder / "run.yaml");
  write_file(folder / "run.yaml",
             "pipeline:\n  stages:\n    - {blocks: [0, 0]}\n    - {blocks: [1, 1]}\n    - {blocks: [2, 2]}\n");
  CHECK(run_program(0, arguments).status == 0);
  CHECK(run_program(3, arguments).status == 0);
  write_file(folder / "run.yaml", "pipeline:\n  stages:\n    - {blocks: [0, 0]}\n    - {blocks: [2, 2]}\n");
  expect({arguments, 2, "run.yaml:4:"});
  write_file(folder / "run.yaml", "pipeline:\n  stages:\n    - {blocks: [0, 0]}\n    - {blocks: [1, 7]}\n");
  expect({arguments, 2, "run.yaml:4:"});
  write_file(folder / "run.yaml", "pipeline:\n  stages:\n    - {blocks: [0, 0]}\n    - {blocks: [1, 1]}\n");
  expect({arguments, 2, "run.yaml"});
  write_file(folder / "run.yaml", "pipelin:\n  stages: 3\n");
  expect({arguments, 2, "pipeline"});
  write_file(folder / "run.yaml", "pipeline: [\n");
  expect({arguments, 2, "run.yaml:"});
}

TEST_CASE("output that cannot be written") {
  const ScratchFolder folder;
  write_file(folder / "p.jsonl", "{\"tokens\": [1, 2]}\n");
  const std::string arguments = "generate --model " + kTiny + " --prompts " + (folder / "p.jsonl");
  expect({arguments + " --output /does/not/exist/o.jsonl", 1, "/does/not/exist"});
  const Ended full = run_program(0, arguments + " >/dev/full");
  INFO(full.err);
  CHECK(full.status == 1);
  CHECK(full.messages() == 1);
  const Ended closed = run_program(0, arguments + " >&-");
  INFO(closed.err);
  CHECK(closed.status == 1);
  CHECK(closed.messages() == 1);
}

TEST_CASE("a sequence that no memory can hold is refused with the numbers") {
  const Ended ended = run_program(
      0, "bench --model synthetic:gpt2-xl,n_positions=1073741824 --prompt-tokens 1000000000 --new-tokens 2");
  INFO(ended.err);
  CHECK(ended.status == 3);
  CHECK(ended.messages() == 1);
  CHECK(ended.says("available"));
  CHECK(ended.seconds < 10.0);
}
