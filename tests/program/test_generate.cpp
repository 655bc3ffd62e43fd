// The program's results do not depend on how it is started.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <random>

#include "tests/program/run_program.hpp"

using namespace stagecoach::test;

namespace {

unsigned below(std::mt19937& random, std::size_t bound) {
  return static_cast<unsigned>(random() % bound);
}

std::string random_prompts(std::mt19937& random, int count, int vocab, int positions) {
  std::string text;
  for (int i = 0; i < count; ++i) {
    text += fmt::format("{{\"id\": \"p{}\", \"max_new_tokens\": {}, ", i, 1 + below(random, 20));
    if (below(random, 2) == 0) {
      text += fmt::format(
          "\"temperature\": {}, \"top_k\": {}, \"top_p\": {}, \"repetition_penalty\": {}, \"num_samples\": {}, ",
          below(random, 20) * 0.1, below(random, 40), 1.0 - below(random, 3) * 0.1, 1.0 + below(random, 2) * 0.4,
          i == 0 ? 1 : 1 + below(random, 4));
    }
    text += "\"tokens\": [";
    const unsigned length = 1 + below(random, static_cast<unsigned>(positions));
    for (unsigned t = 0; t < length; ++t)
      text += fmt::format("{}{}", t == 0 ? "" : ", ", below(random, static_cast<unsigned>(vocab)));
    text += "]}\n";
  }
  return text;
}

}  // namespace

TEST_CASE("ranks, stages, chunks, threads and prompts from standard input give the same file, byte for byte") {
  const unsigned seed = std::random_device{}();
  INFO("seed " << seed);
  std::mt19937 random(seed);
  const ScratchFolder folder;
  write_file(folder / "p.jsonl", random_prompts(random, 12, 90, 150));
  const std::string common =
      "generate --model synthetic:gpt2,n_layer=8,n_embd=48,n_head=3,n_positions=160,vocab_size=90,seed=5,dtype=float16 "
      "--logprobs --prompts ";
  const auto run = [&](int ranks, const std::string& more, const std::string& prompts) {
    const std::string output = folder / "out.jsonl";
    std::filesystem::remove(output);
    const Ended ended = run_program(ranks, common + prompts + " --output " + output + " " + more);
    INFO(ended.err);
    CHECK(ended.status == 0);
    CHECK(ended.err == "");
    CHECK(!std::filesystem::exists(output + ".partial"));
    return read_file(output);
  };
  const std::string expected = run(0, "--in-flight 1 --threads 1", folder / "p.jsonl");
  for (const int i : {0, 11}) CHECK(expected.find(fmt::format("{{\"index\":{},", i)) != std::string::npos);
  CHECK(run(0, "--threads 2", folder / "p.jsonl") == expected);
  CHECK(run(0, "--stages 4 --chunk-tokens 7", folder / "p.jsonl") == expected);
  CHECK(run(1, "", folder / "p.jsonl") == expected);
  CHECK(run(2, "--chunk-tokens 1", folder / "p.jsonl") == expected);
  CHECK(run(3, "--chunk-tokens 33 --in-flight 5", folder / "p.jsonl") == expected);
  CHECK(run(8, "", folder / "p.jsonl") == expected);
  CHECK(run(0, "<" + (folder / "p.jsonl"), "-") == expected);
  CHECK(run(2, "<" + (folder / "p.jsonl"), "-") == expected);

  std::string joined[3];
  for (int shard = 0; shard < 3; ++shard)
    joined[shard] = run(2, fmt::format("--shard {}/3", shard), folder / "p.jsonl");
  std::string merged;
  std::size_t at[3] = {};
  for (int i = 0; i < 12; ++i) {
    const std::string& mine = joined[i % 3];
    const std::string begin = fmt::format("{{\"index\":{},", i);
    while (mine.compare(at[i % 3], begin.size(), begin) == 0) {
      const std::size_t end = mine.find('\n', at[i % 3]) + 1;
      merged += mine.substr(at[i % 3], end - at[i % 3]);
      at[i % 3] = end;
    }
  }
  CHECK(merged == expected);
}

TEST_CASE("the fields of a result") {
  const ScratchFolder folder;
  write_file(folder / "p.jsonl", "{\"id\": \"a b\", \"tokens\": [1, 2, 3], \"max_new_tokens\": 2}\n");
  const Ended ended =
      run_program(0,
                  "generate --model synthetic:gpt2,n_layer=1,n_embd=8,n_head=1,n_positions=9,vocab_size=20,seed=1 "
                  "--prompts " +
                      (folder / "p.jsonl") + " --output " + (folder / "o.jsonl"));
  INFO(ended.err);
  CHECK(ended.status == 0);
  const std::string line = read_file(folder / "o.jsonl");
  INFO(line);
  CHECK(line.starts_with(
      "{\"index\":0,\"id\":\"a b\",\"sample\":0,\"prompt\":null,\"completion\":null,\"prompt_tokens\":3,\"tokens\":["));
  CHECK(line.ends_with("],\"finish_reason\":\"length\"}\n"));
}

TEST_CASE("help and version") {
  for (const int ranks : {0, 2}) {
    const Ended version = run_program(ranks, "--version");
    CHECK(version.status == 0);
    CHECK(version.out.starts_with("stagecoach 0."));
    CHECK(std::count(version.out.begin(), version.out.end(), '\n') == 1);
    for (const char* command : {"", "generate ", "score ", "bench ", "tokenize "}) {
      const Ended help = run_program(ranks, std::string(command) + "--help");
      CHECK(help.status == 0);
      CHECK(help.out.find(*command == '\0' ? "generate" : "--model") != std::string::npos);
    }
  }
}
