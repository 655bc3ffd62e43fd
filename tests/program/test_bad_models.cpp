// Model files that are damaged, foreign or hostile: one message that names the file, status 2, never a crash.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <random>

#include "tests/program/mistakes.hpp"
#include "tests/rounds.hpp"
#include "tests/unit/safetensors_builder.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

const std::string kGoldenBase = STAGECOACH_SOURCE_DIR "/tests/golden/data/base";
const std::string kConfig =
    R"({"model_type":"gpt2","n_layer":3,"n_head":2,"n_embd":4,"n_inner":6,"n_positions":5,"vocab_size":7})";

// A copy of the golden model with one file changed.
void copy_model(const ScratchFolder& folder) {
  for (const char* name : {"config.json", "model.safetensors"}) {
    std::filesystem::copy_file(kGoldenBase + "/" + name, folder / name);
  }
}

// A small model directory that works, and the command that uses it.
class SmallModel {
 public:
  SmallModel() {
    ModelConfig config = tiny_config();
    config.n_layer = 3;
    tensors_ = tensors_of(config);
    write_file(folder_ / "config.json", kConfig);
    write_file(folder_ / "p.jsonl", "{\"tokens\": [1, 2]}\n");
  }
  const std::vector<FakeTensor>& tensors() const { return tensors_; }
  std::string operator/(const std::string& name) const { return folder_ / name; }
  void write(const std::string& name, const std::string& bytes) const { write_file(folder_ / name, bytes); }
  void remove(const std::string& name) const { std::filesystem::remove(folder_ / name); }
  std::string arguments() const {
    return "generate --model " + folder_.path().string() + " --max-new-tokens 2 --prompts " + (folder_ / "p.jsonl");
  }
  void expect_refused(const std::string& says, Where where = Where::kAloneAndMpirun,
                      const std::source_location& line = std::source_location::current()) const {
    expect({arguments(), 2, says}, where, line);
  }

 private:
  ScratchFolder folder_;
  std::vector<FakeTensor> tensors_;
};

}  // namespace

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

TEST_CASE("safetensors whose header lies") {
  const SmallModel model;
  const std::string good = safetensors(model.tensors());
  model.write("model.safetensors", good);
  REQUIRE(run_program(0, model.arguments()).status == 0);
  for (const std::uint64_t length :
       {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{good.size()}, std::uint64_t{1} << 40,
        std::uint64_t{INT64_MAX}, ~std::uint64_t{0}, ~std::uint64_t{7}}) {
    std::string bytes = good;
    std::memcpy(bytes.data(), &length, sizeof length);
    model.write("model.safetensors", bytes);
    INFO(length);
    model.expect_refused("model.safetensors", Where::kMany);
  }
  const std::string header = header_of(model.tensors());
  const std::string data = good.substr(8 + header.size());
  struct Lie {
    const char* what;
    const char* with;
  };
  for (const Lie& lie :
       {Lie{"\"data_offsets\":[0,", "\"data_offsets\":[-8,"}, Lie{"\"data_offsets\":[0,", "\"data_offsets\":[1,"},
        Lie{"\"data_offsets\":[0,", "\"data_offsets\":[18446744073709551615,"},
        Lie{"\"data_offsets\":[0,", "\"data_offsets\":[9223372036854775807,"},
        Lie{"\"data_offsets\":[0,", "\"data_offsets\":[0.0,"}, Lie{"\"data_offsets\":[112,", "\"data_offsets\":[104,"},
        Lie{"\"shape\":[7,4]", "\"shape\":[4,7]"}, Lie{"\"shape\":[7,4]", "\"shape\":[-7,-4]"},
        Lie{"\"shape\":[7,4]", "\"shape\":[4294967296,4294967296]"}, Lie{"\"shape\":[7,4]", "\"shape\":[28]"},
        Lie{"\"shape\":[7,4]", "\"shape\":7"}, Lie{"\"dtype\":\"F32\"", "\"dtype\":\"F64\""},
        Lie{"\"dtype\":\"F32\"", "\"dtype\":\"\\u001b[31m\""}, Lie{"transformer.wpe", "transformer.wte"},
        Lie{"transformer.wpe", "transformer.wpf"}, Lie{"{\"__metadata__\"", "{\"__metadata__\":"}}) {
    std::string bent = header;
    const std::size_t at = bent.find(lie.what);
    REQUIRE(at != std::string::npos);
    bent.replace(at, std::string(lie.what).size(), lie.with);
    model.write("model.safetensors", with_length(bent, data));
    INFO(lie.with);
    model.expect_refused("model.safetensors", Where::kMany);
  }
  model.write("model.safetensors", with_length(header, data + "more"));
  model.expect_refused("model.safetensors");
  model.write("model.safetensors", "");
  model.expect_refused("model.safetensors");
  std::vector<FakeTensor> one_more = model.tensors();
  one_more.push_back(float_tensor("transformer.h.7.ln_1.bias", {4}));
  model.write("model.safetensors", safetensors(one_more));
  model.expect_refused("h.7.ln_1.bias");
  std::vector<FakeTensor> one_less = model.tensors();
  one_less.pop_back();
  model.write("model.safetensors", safetensors(one_less));
  model.expect_refused("ln_f");
}

TEST_CASE("shards that are missing, foreign or lie elsewhere") {
  const SmallModel model;
  std::vector<FakeTensor> shards[2];
  std::string map;
  for (std::size_t t = 0; t < model.tensors().size(); ++t) {
    shards[t % 2].push_back(model.tensors()[t]);
    map += fmt::format("{}\"{}\": \"s{}.safetensors\"", t == 0 ? "" : ", ", model.tensors()[t].name, t % 2);
  }
  const std::string index = "{\"weight_map\": {" + map + "}}";
  const std::string second = safetensors(shards[1]);
  model.write("model.safetensors.index.json", index);
  model.write("s0.safetensors", safetensors(shards[0]));
  model.expect_refused("s1.safetensors");
  model.write("s1.safetensors", second);
  REQUIRE(run_program(0, model.arguments()).status == 0);
  model.write("s1.safetensors", safetensors(shards[0]));  // another shard's tensors
  model.expect_refused("s1.safetensors");
  model.write("s1.safetensors", second.substr(0, second.size() / 2));
  model.expect_refused("s1.safetensors");
  model.write("s1.safetensors", second);
  for (const char* name : {"../s1.safetensors", "/etc/passwd", ""}) {
    std::string foreign = index;
    const std::size_t at = foreign.find("s1.safetensors");
    model.write("model.safetensors.index.json", foreign.replace(at, 14, name));
    INFO(name);
    model.expect_refused("stagecoach: ", Where::kMany);
  }
  for (const char* text :
       {"", "{", "[]", "{}", "{\"weight_map\": 3}", "{\"weight_map\": {}}", "{\"weight_map\": {\"a\": 1}}"}) {
    model.write("model.safetensors.index.json", text);
    model.expect_refused("model.safetensors", Where::kMany);
  }
}

TEST_CASE("configurations and vocabularies that are damaged") {
  const SmallModel model;
  model.write("model.safetensors", safetensors(model.tensors()));
  for (const std::string& text :
       {std::string(), std::string("{"), std::string("[]"), std::string("\xff\xfe"), std::string(1 << 20, '['),
        std::string("{\"n_layer\": 3, \"n_layer\": 3}"), std::string("{\"model_type\": \"bert\"}")}) {
    model.write("config.json", text);
    model.expect_refused("config.json", Where::kMany);
  }
  for (const char* field :
       {"n_layer\":3", "n_head\":2", "n_embd\":4", "n_inner\":6", "n_positions\":5", "vocab_size\":7"}) {
    for (const char* value : {"-1", "0", "1e30", "2147483648", "9223372036854775808", "\"3\"", "2.5", "[]", "true"}) {
      std::string text = kConfig;
      const std::string name = std::string(field).substr(0, std::string(field).find('"'));
      model.write("config.json", text.replace(text.find(field), std::string(field).size(), name + "\":" + value));
      INFO(name << ": " << value);
      model.expect_refused("stagecoach: ", Where::kMany);
    }
  }
  model.remove("config.json");
  std::filesystem::create_directory(model / "config.json");
  model.expect_refused("config.json");
}

TEST_CASE("tokenizer files that are damaged") {
  const ScratchFolder folder;
  ModelConfig config = tiny_config();
  config.n_layer = 3;
  config.n_positions = 40;
  config.vocab_size = 700;
  write_file(folder / "config.json", R"({"model_type":"gpt2","n_layer":3,"n_head":2,"n_embd":4,"n_inner":6,)"
                                     R"("n_positions":40,"vocab_size":700})");
  write_file(folder / "model.safetensors", safetensors(tensors_of(config)));
  for (const char* name : {"vocab.json", "merges.txt"}) {
    std::filesystem::copy(STAGECOACH_SOURCE_DIR "/tests/data/tiny_tokenizer/" + std::string(name), folder / name);
  }
  const std::string arguments = "generate --model " + folder.path().string() + " --prompt x --max-new-tokens 2";
  REQUIRE(run_program(0, arguments).status == 0);
  for (const std::string name : {"vocab.json", "merges.txt"}) {
    const std::string good = read_file(folder / name);
    std::vector<std::string> wrong = {std::string("\0\1\2\xff", 4), "a b c d\n", std::string(100000, '{')};
    if (name == "vocab.json") {
      for (const std::string& text : {std::string(), good.substr(0, good.size() / 2), good + good,
                                      std::string("{\"a\": -1}"), std::string("{\"a\": 1e99}"), std::string("[]")}) {
        wrong.push_back(text);
      }
    }
    for (const std::string& text : wrong) {
      write_file(folder / name, text);
      INFO(name << ": " << text.substr(0, 40));
      expect({arguments, 2, name}, Where::kMany);
    }
    std::filesystem::remove(folder / name);
    expect({arguments, 2, name});
    write_file(folder / name, good);
  }
}

TEST_CASE("native files that are cut or flipped are refused, or hold what they held") {
  const unsigned seed = std::random_device{}();
  INFO("seed " << seed);
  std::mt19937 random(seed);
  const ScratchFolder folder;
  copy_model(folder);
  const std::string file = folder / "m.h5";
  REQUIRE(run_program(0, "convert --model " + folder.path().string() + " --output " + file).status == 0);
  write_file(folder / "p.jsonl", "{\"tokens\": [1, 2]}\n");
  const std::string arguments = "generate --model " + file + " --prompts " + (folder / "p.jsonl");
  const std::string good = read_file(file);
  const std::string expected = run_program(0, arguments).out;
  for (const std::size_t size :
       {good.size() - 1, good.size() / 2, std::size_t{4096}, std::size_t{100}, std::size_t{9}}) {
    write_file(file, good.substr(0, size));
    INFO(size);
    expect({arguments, 2, "m.h5"}, Where::kMany);
  }
  write_file(file, good + "more");
  CHECK(run_program(0, arguments).status != 139);
  for (int flip = 0; flip < 60; ++flip) {
    std::string bytes = good;
    // Half of them where the descriptions stand, before the tensors.
    const std::size_t at = random() % (flip % 2 == 0 ? good.size() : good.size() / 8);
    bytes[at] = static_cast<char>(bytes[at] ^ static_cast<char>(1U << (random() % 8)));
    write_file(file, bytes);
    const Ended ended = run_program(slow_tests() && flip % 3 == 0 ? 3 : 0, arguments);
    INFO("byte " << at << ": " << ended.err);
    if (ended.status == 0) {
      CHECK(ended.out == expected);  // between the tensors, or of a tensor that is not read
    } else {
      CHECK(ended.status == 2);
      CHECK(ended.messages() == 1);
      CHECK(ended.says("m.h5"));
    }
  }
}

// One byte changed, on which libhdf5 1.10 crashes: an error of a run with MPI like any other.
TEST_CASE("a damaged HDF5 file is one error") {
  const ScratchFolder folder;
  std::string file = read_file(STAGECOACH_SOURCE_DIR "/tests/golden/data/keras_base/tf_model.h5");
  file[2139] = 1;
  write_file(folder / "m.h5", file);
  expect({"bench --model " + (folder / "m.h5") + " --prompt-tokens 4 --new-tokens 2", 2, "m.h5"});
}

TEST_CASE("a model directory that vanishes while the program starts") {
  const unsigned seed = std::random_device{}();
  INFO("seed " << seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 6; ++round) {
    const ScratchFolder folder;
    copy_model(folder);
    const ScratchFolder prompts;
    write_file(prompts / "p.jsonl", "{\"tokens\": [1, 2]}\n");
    const Ended ended = run_program(
        round % 3 == 2 ? 3 : 0, "generate --model " + folder.path().string() + " --prompts " + (prompts / "p.jsonl"),
        60,
        fmt::format("(sleep 0.{:03}; rm -rf {}) & ", random() % (round % 3 == 2 ? 900 : 50), folder.path().string()));
    INFO(ended.err);
    const bool fine = ended.status == 0 && ended.messages() == 0;
    const bool refused = ended.status == 2 && ended.messages() == 1;
    CHECK((fine || refused));
    CHECK(ended.seconds < on_this_machine(10.0));
  }
}
