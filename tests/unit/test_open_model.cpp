#include <doctest/doctest.h>
#include <sys/stat.h>

#include "runtime/weight_source.hpp"
#include "tests/unit/safetensors_builder.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

std::string error_of(const std::string& name) {
  return message_of<WeightError>([&] { open_model(name); });
}

struct Directory : TemporaryDirectory {
  explicit Directory(const std::string& config = kTinyConfigJson) {
    write("config.json", config);
    write("model.safetensors", safetensors(tensors_of(tiny_config())));
  }
};

}  // namespace

TEST_CASE("open_model: a directory without a tokenizer") {
  const Directory directory;
  const Model model = open_model(directory.name());
  CHECK(model.name == directory.name());
  CHECK(model.config.n_inner == 6);
  CHECK(model.config.eos_token_id == -1);
  CHECK(model.dtype == DType::kFloat32);
  CHECK(!model.tokenizer.has_value());
  CHECK(model.weights->bytes_read() == 0);
}

TEST_CASE("open_model: without the tokenizer its files are not opened") {
  const Directory directory;
  directory.write("vocab.json", "no vocabulary");
  directory.write("merges.txt", "");
  CHECK(contains(error_of(directory.name()), "vocab.json"));
  CHECK(!open_model(directory.name(), ModelParts::kNoTokenizer).tokenizer.has_value());
}

TEST_CASE("open_model: synthetic models need no files") {
  const Model model = open_model("synthetic:gpt2-xl,dtype=bfloat16,n_layer=2");
  CHECK(model.config.n_embd == 1600);
  CHECK(model.dtype == DType::kBFloat16);
  CHECK(!model.tokenizer.has_value());
  CHECK(contains(error_of("synthetic:gpt9"), "known are gpt2"));
}

TEST_CASE("open_model: what is no model directory") {
  const Directory directory;
  CHECK(contains(error_of(directory.name() + "/nothing"), "/nothing: does not exist; expected"));
  CHECK(
      contains(error_of(directory.name() + "/config.json"), "config.json: is a file; expected the model's directory"));
  CHECK(contains(error_of(""), "does not exist"));
  CHECK(contains(error_of(std::string(5000, 'x')), "xxx"));
  std::filesystem::remove(directory.path() / "config.json");
  CHECK(contains(error_of(directory.name()), ": has no config.json"));
}

TEST_CASE("open_model: config.json that is a directory or a named pipe is an error, not a wait") {
  const Directory directory;
  std::filesystem::remove(directory.path() / "config.json");
  REQUIRE(::mkfifo((directory.path() / "config.json").c_str(), 0600) == 0);
  CHECK(contains(error_of(directory.name()), "/config.json: is not a regular file"));
  std::filesystem::remove(directory.path() / "config.json");
  std::filesystem::create_directory(directory.path() / "config.json");
  CHECK(contains(error_of(directory.name()), "/config.json: is not a regular file"));
}

TEST_CASE("open_model: weights in other formats say what would work") {
  const Directory directory;
  std::filesystem::remove(directory.path() / "model.safetensors");
  CHECK(contains(error_of(directory.name()),
                 ": has no weights; expected model.safetensors, model.safetensors.index.json or tf_model.h5"));
  for (const char* other : {"flax_model.msgpack", "pytorch_model.bin"}) {
    directory.write(other, "x");
    CHECK(contains(error_of(directory.name()), fmt::format(": has {} but no model.safetensors; this version reads "
                                                           "safetensors and tf_model.h5",
                                                           other)));
  }
}

TEST_CASE("open_model: errors of config.json name the file") {
  CHECK(contains(error_of(Directory(R"({"n_layer": 0})").name()), "/config.json: n_layer: is 0"));
  CHECK(contains(error_of(Directory("{").name()), "/config.json: line 1, column "));
  CHECK(contains(error_of(Directory(R"({"n_layer": 2})").name()),
                 "/model.safetensors: tensor transformer.wte.weight: shape (7, 4)"));
}

TEST_CASE("open_model: one tokenizer file without the other") {
  const Directory directory;
  directory.write("vocab.json", "{}");
  CHECK(contains(error_of(directory.name()), "has vocab.json but no merges.txt"));
  std::filesystem::remove(directory.path() / "vocab.json");
  directory.write("merges.txt", "");
  CHECK(contains(error_of(directory.name()), "has merges.txt but no vocab.json"));
}

TEST_CASE("open_model: errors of the tokenizer are errors of the model") {
  const Directory directory;
  directory.write("vocab.json", "{");
  directory.write("merges.txt", "#version: 0.2\n");
  CHECK(contains(error_of(directory.name()), "vocab.json"));
}

TEST_CASE("open_model: the bundled golden models open") {
  const std::filesystem::path data = std::filesystem::path(STAGECOACH_SOURCE_DIR) / "tests/golden/data";
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(data)) {
    CAPTURE(entry.path().string());
    const Model model = open_model(entry.path().string());
    for (const TensorSpec& spec : tensor_table(model.config)) {
      std::vector<std::byte> bytes(static_cast<std::size_t>(spec.elements() * size_of(model.weights->dtype_of(spec))));
      CHECK_NOTHROW(model.weights->read_rows(spec, 0, spec.rows, bytes));
    }
    ++count;
  }
  CHECK(count >= 20);
}
