// `score` as people use it: the demo model's recorded perplexity, windows, files and lines, any layout.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cmath>
#include <cstdlib>
#include <iterator>
#include <random>

#include "kernels/convert.hpp"
#include "runtime/json.hpp"
#include "runtime/model_config.hpp"
#include "runtime/results_h5.hpp"
#include "runtime/weight_source.hpp"
#include "tests/program/run_program.hpp"
#include "tests/unit/keras_builder.hpp"

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

TEST_CASE("weights of fewer bits change the demo model's perplexity by less than half a percent") {
  const double recorded = number(parse_json(read_file(kDemo + "/training.json")).find("held_out")->find("perplexity"));
  for (const char* dtype : {"bfloat16", "int8"}) {
    const Ended ended =
        run_program(0, fmt::format("score --model {} --prompts {}/held_out.txt --dtype {}", kDemo, kDemo, dtype));
    INFO(dtype << ": " << ended.out << ended.err);
    REQUIRE(ended.status == 0);
    const std::string word = "perplexity ";
    const double perplexity = std::stod(ended.out.substr(ended.out.rfind(word) + word.size()));
    CHECK(std::abs(perplexity / recorded - 1.0) < 0.005);
  }
}

// The demo model's tensors, as float16 or as float32, in the form that the builders of files take.
std::vector<FakeTensor> demo_tensors(const Model& demo, DType dtype, const std::string& prefix) {
  std::vector<FakeTensor> tensors;
  for (const TensorSpec& spec : tensor_table(demo.config)) {
    std::string stored(static_cast<std::size_t>(spec.elements() * 2), '\0');
    REQUIRE(demo.weights->dtype_of(spec) == DType::kFloat16);
    demo.weights->read_rows(spec, 0, spec.rows, std::as_writable_bytes(std::span(stored)));
    FakeTensor& tensor = tensors.emplace_back();
    tensor.name = prefix + spec.name;
    tensor.dtype = dtype == DType::kFloat16 ? "F16" : "F32";
    tensor.shape = spec.is_vector ? std::vector{spec.cols} : std::vector{spec.rows, spec.cols};
    tensor.bytes.resize(static_cast<std::size_t>(spec.elements() * size_of(dtype)));
    convert_elements(stored.data(), DType::kFloat16, tensor.bytes.data(), dtype, spec.elements());
  }
  return tensors;
}

std::string config_json(const ModelConfig& config) {
  std::string json = "{\"model_type\": \"gpt2\"";
  for (const auto& [name, value] : config_fields(config)) {
    json += fmt::format(", \"{}\": ", name);
    if (value.integer() != nullptr) json += fmt::format("{}", *value.integer());
    if (value.boolean() != nullptr) json += *value.boolean() ? "true" : "false";
    if (value.real() != nullptr) json += fmt::format("{}", *value.real());
    if (value.string() != nullptr) json += fmt::format("\"{}\"", *value.string());
  }
  return json + "}";
}

TEST_CASE("the demo model's scores are the same through every format, byte for byte") {
  const Model demo = open_model(kDemo);
  const auto texts = read_tokenizer_texts(kDemo);
  REQUIRE(texts);
  const ScratchFolder folder;
  const auto directory = [&](const std::string& name) {
    std::filesystem::create_directory(folder / name);
    write_file(folder / name + "/config.json", config_json(demo.config));
    write_file(folder / name + "/vocab.json", texts->vocab_json);
    write_file(folder / name + "/merges.txt", texts->merges_txt);
    return folder / name;
  };
  const std::vector<FakeTensor> halves = demo_tensors(demo, DType::kFloat16, "transformer.");
  write_file(directory("single") + "/model.safetensors", safetensors(halves));
  std::string weight_map;
  std::vector<FakeTensor> shards[2];
  for (std::size_t t = 0; t < halves.size(); ++t) {
    shards[t % 2].push_back(halves[t]);
    weight_map += fmt::format("{}\"{}\": \"s{}.safetensors\"", t == 0 ? "" : ", ", halves[t].name, t % 2);
  }
  const std::string sharded = directory("sharded");
  for (int s = 0; s < 2; ++s) write_file(fmt::format("{}/s{}.safetensors", sharded, s), safetensors(shards[s]));
  write_file(sharded + "/model.safetensors.index.json", "{\"weight_map\": {" + weight_map + "}}");
  write_keras(directory("keras") + "/tf_model.h5", demo_tensors(demo, DType::kFloat32, ""));
  for (const char* from : {"single", "keras"}) {
    const Ended converted = run_program(0, fmt::format("convert --quiet --model {} --output {}/{}.h5 --dtype float32",
                                                       folder / from, folder.path().string(), from));
    INFO(converted.err);
    REQUIRE(converted.status == 0);
  }

  const std::string held_out = read_file(kDemo + "/held_out.txt");
  write_file(folder / "some.txt", held_out.substr(0, held_out.find('\n', held_out.size() / 20) + 1));
  const auto scores = [&](const std::string& model) {
    const Ended ended = run_program(2, "score --dtype float32 --model " + model + " --prompts " +
                                           (folder / "some.txt") + " --output " + (folder / "s.jsonl"));
    INFO(model << ": " << ended.err);
    CHECK(ended.status == 0);
    return ended.out + read_file(folder / "s.jsonl");
  };
  const std::string expected = scores(kDemo);
  for (const char* model : {"single", "sharded", "keras", "single.h5", "keras.h5"}) {
    INFO(model);
    CHECK(scores(folder / model) == expected);
  }
  CHECK(read_file(folder / "single.h5") == read_file(folder / "keras.h5"));
}

TEST_CASE("results as HDF5 hold what the JSON lines say, and leave no lines") {
  const ScratchFolder folder;
  const std::string generate = "generate --fresh --model " + kDemo + " --prompts " + kDemo +
                               "/prompts.txt --max-new-tokens 9 --temperature 1 --num-samples 2 --logprobs --output ";
  const std::string score = "score --fresh --model " + kDemo + " --prompts " + kDemo + "/prompts.txt --output ";
  for (const std::string& command : {generate, score}) {
    REQUIRE(run_program(0, command + (folder / "lines.jsonl")).status == 0);
    write_results_h5(folder / "lines.jsonl", folder / "expected.h5");
    for (const int ranks : {0, 2}) {
      const Ended ended = run_program(ranks, command + (folder / "out.h5"));
      INFO(ended.err);
      CHECK(ended.status == 0);
      CHECK(read_file(folder / "out.h5") == read_file(folder / "expected.h5"));
      std::filesystem::remove(folder / "out.h5");
      std::filesystem::remove(folder / "out.h5.journal");
      CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) ==
            3);  // lines, their journal, expected
    }
  }
  std::filesystem::create_directory(folder / "dir.h5");
  const Ended taken = run_program(3, generate + (folder / "dir.h5"));
  CHECK(taken.status == 2);
  CHECK(taken.messages() == 1);
  CHECK(taken.says("dir.h5"));
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
