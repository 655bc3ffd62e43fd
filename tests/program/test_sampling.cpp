// Sampling as people use it: seeds, samples, stop strings, options per line. The bundled demo model has a vocabulary.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "runtime/json.hpp"
#include "tests/program/run_program.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

const std::string kDemo = STAGECOACH_SOURCE_DIR "/configs/demo";

std::vector<Json> lines_of(const std::string& text) {
  std::vector<Json> lines;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = text.find('\n', at);
    lines.push_back(parse_json(text.substr(at, end - at)));
    at = end + 1;
  }
  return lines;
}

const std::string& text_of(const Json& line, const char* key) {
  return *line.find(key)->string();
}

// The file that `generate` with these arguments writes.
std::string generated(const ScratchFolder& folder, const std::string& arguments, int ranks = 0) {
  std::filesystem::remove(folder / "o.jsonl");
  const Ended ended =
      run_program(ranks, "generate --model " + kDemo + " --output " + (folder / "o.jsonl") + " " + arguments);
  INFO(arguments << ": " << ended.err);
  REQUIRE(ended.status == 0);
  return read_file(folder / "o.jsonl");
}

}  // namespace

TEST_CASE("samples differ, seeds decide, and options mean the same on a line and on the command line") {
  const ScratchFolder folder;
  const std::string common = "--prompt 'The coach' --max-new-tokens 30 --logprobs ";
  const std::string all =
      generated(folder, common + "--temperature 0.9 --top-k 50 --top-p 0.95 --num-samples 6 --seed 3");
  const std::vector<Json> samples = lines_of(all);
  REQUIRE(samples.size() == 6);
  std::set<std::string> texts;
  for (std::size_t i = 0; i < samples.size(); ++i) {
    CHECK(*samples[i].find("sample")->integer() == static_cast<std::int64_t>(i));
    texts.insert(text_of(samples[i], "completion"));
  }
  CHECK(texts.size() > 3);
  CHECK(generated(folder, common + "--temperature 0.9 --top-k 50 --top-p 0.95 --num-samples 6 --seed 3", 3) == all);
  CHECK(generated(folder, common + "--temperature 0.9 --top-k 50 --top-p 0.95 --num-samples 6 --seed 4") != all);
  // The first of six samples is the one of one.
  CHECK(all.starts_with(generated(folder, common + "--temperature 0.9 --top-k 50 --top-p 0.95 --seed 3")));

  write_file(folder / "p.jsonl",
             "{\"prompt\": \"The coach\", \"temperature\": 0.9, \"top_k\": 50, \"top_p\": 0.95, \"num_samples\": 6, "
             "\"max_new_tokens\": 30}\n");
  CHECK(generated(folder, "--logprobs --seed 3 --prompts " + (folder / "p.jsonl"), 2) == all);
  write_file(folder / "run.yaml",
             "generation: {temperature: 0.9, top_k: 50, top_p: 0.95, num_samples: 6, max_new_tokens: 30, seed: 3}\n");
  CHECK(generated(folder, "--logprobs --prompt 'The coach' --config " + (folder / "run.yaml")) == all);

  // The same prompt twice: other indices, other seeds, unless the lines say the same seed.
  const std::string line = "{\"prompt\": \"The coach\", \"temperature\": 1";
  write_file(folder / "p.jsonl", line + "}\n" + line + "}\n" + line + ", \"seed\": 5}\n" + line + ", \"seed\": 5}\n");
  const std::vector<Json> four = lines_of(generated(folder, "--max-new-tokens 40 --prompts " + (folder / "p.jsonl")));
  CHECK(text_of(four.at(0), "completion") != text_of(four.at(1), "completion"));
  CHECK(text_of(four.at(2), "completion") == text_of(four.at(3), "completion"));
}

TEST_CASE("generation ends before a stop string, also across token borders") {
  const ScratchFolder folder;
  const std::string common = "--prompt 'It had rained all night, and' --max-new-tokens 60 ";
  const std::string whole = text_of(lines_of(generated(folder, common)).at(0), "completion");
  REQUIRE(whole.size() > 60);
  int across = 0;
  for (std::size_t at = 5; at + 9 < whole.size(); at += 17) {
    const std::string stop = whole.substr(at, 9);
    if ((static_cast<unsigned char>(stop[0]) & 0xC0U) == 0x80U || stop.find('\'') != std::string::npos) continue;
    const std::size_t first = whole.find(stop);
    const Json line = lines_of(generated(folder, common + "--stop '" + stop + "' --stop 'never there'")).at(0);
    INFO("stop '" << stop << "'");
    CHECK(text_of(line, "finish_reason") == "stop");
    CHECK(text_of(line, "completion") == whole.substr(0, first));
    const Ended streamed = run_program(2, "generate --model " + kDemo + " " + common + "--stop '" + stop + "'");
    CHECK(streamed.out == "It had rained all night, and" + whole.substr(0, first) + "\n");
    ++across;
  }
  CHECK(across > 2);
}

TEST_CASE("the repetition penalty keeps tokens from coming back") {
  const ScratchFolder folder;
  const auto distinct = [&](const std::string& penalty) {
    const Json line =
        lines_of(generated(folder, "--prompt 'The' --max-new-tokens 200 --repetition-penalty " + penalty)).at(0);
    std::set<std::int64_t> ids;
    for (const Json& id : *line.find("tokens")->array()) ids.insert(*id.integer());
    return ids.size();
  };
  CHECK(distinct("1000") > distinct("1") + 30);
}

TEST_CASE("a prompt with many samples runs where a sample at a time has to do") {
  const ScratchFolder folder;
  const std::string common =
      "--prompts " + (folder / "p.jsonl") + " --max-new-tokens 8 --temperature 1 --num-samples 90";
  write_file(folder / "p.jsonl", "{\"prompt\": \"The\"}\n{\"tokens\": [5]}\n");
  const std::string all = generated(folder, common);
  CHECK(std::count(all.begin(), all.end(), '\n') == 180);
  CHECK(generated(folder, common + " --in-flight 4 --stages 3") == all);
}

TEST_CASE("stop strings need a vocabulary") {
  const ScratchFolder folder;
  write_file(folder / "p.jsonl", "{\"tokens\": [1]}\n");
  const Ended ended = run_program(2,
                                  "generate --model synthetic:gpt2,n_layer=2,n_embd=8,n_head=1,vocab_size=20 --stop x "
                                  "--prompts " +
                                      (folder / "p.jsonl"));
  INFO(ended.err);
  CHECK(ended.status == 2);
  CHECK(ended.messages() == 1);
  CHECK(ended.says("stop: needs the text of tokens"));
}
