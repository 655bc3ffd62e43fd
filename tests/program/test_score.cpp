// `score` as people use it: the demo model's recorded perplexity, windows, files and lines, any layout.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cmath>
#include <cstdlib>
#include <random>

#include "runtime/json.hpp"
#include "tests/program/run_program.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

const std::string kDemo = STAGECOACH_SOURCE_DIR "/configs/demo";
const std::string kTiny =
    "synthetic:gpt2,n_layer=3,n_embd=16,n_head=2,n_positions=40,vocab_size=50,seed=1,dtype=float32";

double number(const Json* value) {
  return value->real() != nullptr ? *value->real() : static_cast<double>(*value->integer());
}

// A line of JSON prompts of random tokens.
std::string random_lines(std::mt19937& random, const std::vector<int>& lengths) {
  std::string text;
  for (const int length : lengths) {
    text += "{\"tokens\": [";
    for (int t = 0; t < length; ++t) text += fmt::format("{}{}", t == 0 ? "" : ",", random() % 50);
    text += "]}\n";
  }
  return text;
}

}  // namespace

TEST_CASE("the demo model's perplexity is the one recorded at training") {
  const Json training = parse_json(read_file(kDemo + "/training.json"));
  const Json* recorded = training.find("held_out");
  for (const int ranks : {0, 2}) {
    const Ended ended = run_program(ranks, "score --model " + kDemo + " --prompts " + kDemo + "/held_out.txt");
    INFO(ended.err);
    CHECK(ended.status == 0);
    CHECK(ended.out.ends_with(
        fmt::format("\n{} texts, {} tokens scored, perplexity {:.6f}\n", *recorded->find("stories")->integer(),
                    *recorded->find("scored_tokens")->integer(), number(recorded->find("perplexity")))));
  }
}

TEST_CASE("scores are the same for every layout, byte for byte, with and without windows") {
  const unsigned seed = std::random_device{}();
  INFO("seed " << seed);
  std::mt19937 random(seed);
  const ScratchFolder folder;
  write_file(folder / "p.jsonl", random_lines(random, {1, 2, 39, 40, 41, 150, 7, 333, 1}));
  for (const char* stride : {"", "--stride 1 ", "--stride 39 ", "--stride 13 "}) {
    const auto run = [&](int ranks, const std::string& more) {
      std::filesystem::remove(folder / "s.jsonl");
      const Ended ended = run_program(ranks, "score --model " + kTiny + " --prompts " + (folder / "p.jsonl") +
                                                 " --output " + (folder / "s.jsonl") + " " + stride + more);
      INFO(ended.err);
      CHECK(ended.status == 0);
      return read_file(folder / "s.jsonl");
    };
    const std::string expected = run(0, "--in-flight 1 --threads 1");
    CHECK(run(0, "--stages 3 --chunk-tokens 7") == expected);
    CHECK(run(2, "--chunk-tokens 1") == expected);
    CHECK(run(3, "--in-flight 5") == expected);
    // Sums and perplexity follow from the tokens' own numbers.
    std::size_t at = 0;
    for (int i = 0; i < 9; ++i) {
      const std::size_t end = expected.find('\n', at);
      const Json line = parse_json(expected.substr(at, end - at));
      at = end + 1;
      const Json::Array& logprobs = *line.find("logprobs")->array();
      CHECK(logprobs.size() == line.find("tokens")->array()->size());
      CHECK(logprobs.at(0).is_null());
      double sum = 0.0;
      for (std::size_t t = 1; t < logprobs.size(); ++t)
        sum += static_cast<double>(static_cast<float>(number(&logprobs[t])));
      CHECK(number(line.find("sum_logprob")) == doctest::Approx(sum));
      if (logprobs.size() == 1) {
        CHECK(line.find("perplexity")->is_null());
      } else {
        CHECK(number(line.find("perplexity")) ==
              doctest::Approx(std::exp(-sum / static_cast<double>(logprobs.size() - 1))));
      }
    }
  }
}

TEST_CASE("generated log-probabilities are those that score gives the same tokens") {
  const ScratchFolder folder;
  const Ended generated = run_program(0, "generate --model " + kDemo +
                                             " --prompt 'The inn was' --temperature 1 --logprobs "
                                             "--max-new-tokens 50 --ignore-eos --output " +
                                             (folder / "g.jsonl"));
  REQUIRE(generated.status == 0);
  const Json line = parse_json(read_file(folder / "g.jsonl"));
  write_file(folder / "prompt.txt", "The inn was");
  const Ended prompt = run_program(0, "tokenize --model " + kDemo + " " + (folder / "prompt.txt"));
  std::string ids;
  for (const char c : prompt.out.substr(0, prompt.out.find('\n'))) ids += c == ' ' ? ',' : c;
  const auto prompt_tokens = *line.find("prompt_tokens")->integer();
  for (const Json& id : *line.find("tokens")->array()) ids += fmt::format(",{}", *id.integer());
  write_file(folder / "p.jsonl", "{\"tokens\": [" + ids + "]}\n");
  const Ended scored = run_program(
      2, "score --model " + kDemo + " --prompts " + (folder / "p.jsonl") + " --output " + (folder / "s.jsonl"));
  REQUIRE(scored.status == 0);
  const Json score = parse_json(read_file(folder / "s.jsonl"));
  const Json::Array& all = *score.find("logprobs")->array();
  const Json::Array& ours = *line.find("logprobs")->array();
  REQUIRE(all.size() == ours.size() + static_cast<std::size_t>(prompt_tokens));
  for (std::size_t i = 0; i < ours.size(); ++i) {
    CHECK(number(&ours[i]) == number(&all[i + static_cast<std::size_t>(prompt_tokens)]));
  }
}

TEST_CASE("texts: whole files, and mistakes") {
  const ScratchFolder folder;
  write_file(folder / "a.txt", "The coach left.\nIt rained.\n");
  write_file(folder / "empty.txt", "");
  const Ended good =
      run_program(0, "score --model " + kDemo + " --text " + (folder / "a.txt") + " --text " + (folder / "a.txt"));
  INFO(good.out << good.err);
  CHECK(good.status == 0);
  CHECK(good.out.starts_with("0: "));
  CHECK(good.out.find("\n2 texts, ") != std::string::npos);
  struct Mistake {
    std::string arguments, says;
  };
  for (const Mistake& m : {Mistake{"--text " + (folder / "empty.txt"), "empty.txt"},
                           Mistake{"--text " + (folder / "missing.txt"), "missing.txt"},
                           Mistake{"--text " + folder.path().string(), "is a folder"}, Mistake{"", "--text"},
                           Mistake{"--text " + (folder / "a.txt") + " --stride 2048", "2048 positions"},
                           Mistake{"--text " + (folder / "a.txt") + " --temperature 1", "--temperature"},
                           Mistake{"--text " + (folder / "a.txt") + " --output x.csv", ".jsonl or .h5"}}) {
    for (const int ranks : {0, 3}) {
      const Ended ended = run_program(ranks, "score --model " + kDemo + " " + m.arguments);
      INFO(m.arguments << ": " << ended.err);
      CHECK(ended.status == 2);
      CHECK(ended.messages() == 1);
      CHECK(ended.says(m.says));
    }
  }
}
