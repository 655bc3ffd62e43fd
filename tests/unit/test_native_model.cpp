// Native files that are damaged, foreign or cannot be written, and what travels along with the weights.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/backend.hpp"
#include "runtime/hdf5_file.hpp"
#include "runtime/model_config.hpp"
#include "runtime/native_model.hpp"
#include "runtime/results.hpp"
#include "runtime/stage_weights.hpp"
#include "tests/rounds.hpp"
#include "tests/unit/native_fixture.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

// A source of one float32 model whose wpe.weight has `odd` at element 3.
class OddSource final : public WeightSource {
 public:
  explicit OddSource(float odd) : odd_(odd) {}
  DType dtype_of(const TensorSpec&) const override { return DType::kFloat32; }
  void read_rows(const TensorSpec& tensor, std::int64_t first_row, std::int64_t rows,
                 std::span<std::byte> out) const override {
    std::vector<float> values(static_cast<std::size_t>(rows * tensor.cols), 0.5F);
    if (tensor.role == TensorRole::kPositionEmbedding && first_row == 0) values.at(3) = odd_;
    std::memcpy(out.data(), values.data(), 4 * values.size());
  }
  std::int64_t bytes_read() const override { return 0; }
  std::string place_of(const TensorSpec& tensor) const override { return "odd: tensor " + tensor.name; }

 private:
  float odd_;
};

std::string odd_error(float odd, std::optional<DType> dtype) {
  const TemporaryDirectory directory;
  Model model;
  model.name = "odd";
  model.config = tiny_config();
  model.weights = std::make_unique<OddSource>(odd);
  const std::string error = message_of<WeightError>([&] { convert(model, directory.name() + "/m.h5", {dtype}); });
  CHECK(std::filesystem::exists(directory.path() / "m.h5") == error.empty());
  CHECK(!std::filesystem::exists(directory.path() / "m.h5.partial"));
  return error;
}

}  // namespace

TEST_CASE("native: config_fields is the inverse of parse_model_config") {
  for (int i = 0; i < 300; ++i) {
    ModelConfig config;
    config.n_layer = pick(1, 60);
    config.n_head = pick(1, 30);
    config.n_embd = config.n_head * pick(1, 100);
    config.n_inner = pick(1, 10000);
    config.n_positions = pick(1, 1 << 20);
    config.vocab_size = pick(1, 60000);
    config.activation = static_cast<ActivationName>(pick(0, 4));
    config.layer_norm_epsilon = std::exp(std::uniform_real_distribution<float>(-80.0F, 10.0F)(random_source()));
    config.scale_attn_weights = pick(0, 1) == 1;
    config.scale_attn_by_inverse_layer_idx = pick(0, 1) == 1;
    config.reorder_and_upcast_attn = pick(0, 1) == 1;
    config.tie_word_embeddings = pick(0, 1) == 1;
    config.eos_token_id = pick(-1, config.vocab_size - 1);
    CHECK(same(parse_model_config(Json(config_fields(config)), "f"), config));
  }
}

TEST_CASE("native: the tokenizer travels along") {
  const NativeFile file({}, tiny_texts());
  const Model model = open_model(file.path());
  REQUIRE(model.tokenizer.has_value());
  const std::string text = "The stages aren't full: 12 \xC3\xA9 <|endoftext|>";
  const Tokenizer original = Tokenizer::from_text(tiny_texts().vocab_json, tiny_texts().merges_txt, "x");
  CHECK(model.tokenizer->encode(text) == original.encode(text));
  CHECK(open_tokenizer(file.path()).encode(text) == original.encode(text));
  const auto texts = read_tokenizer_texts(file.path());
  REQUIRE(texts.has_value());
  CHECK(texts->vocab_json == tiny_texts().vocab_json);
  CHECK(texts->merges_txt == tiny_texts().merges_txt);
}

TEST_CASE("native: a damaged tokenizer or tensor is named") {
  for (const NativeOptions& kind : kKinds) {
    const NativeFile file(kind, tiny_texts());
    const std::vector<H5Dataset> datasets = H5Reader(file.path()).datasets();
    CHECK(datasets.size() == 18);
    for (const H5Dataset& dataset : datasets) {
      CAPTURE(dataset.path);
      std::string bytes = file.whole;
      bytes[static_cast<std::size_t>(*dataset.offset + pick(0, static_cast<std::int32_t>(dataset.bytes - 1)))] ^=
          static_cast<char>(1 << pick(0, 7));
      CHECK(contains(file.error_of(bytes), "/m.h5: "));
      CHECK(contains(file.error_of(bytes), dataset.path + ": its bytes do not match their checksum"));
    }
  }
}

TEST_CASE("native: loading a stage verifies what it reads") {
  for (const NativeOptions& kind : kKinds) {
    const NativeFile file(kind);
    const auto load = [&] {
      const Model model = open_model(file.path());
      const auto backend = make_reference_backend();
      load_stage(*backend, *model.weights, model.config, {0, 0}, model.dtype, {});
    };
    CHECK_NOTHROW(load());
    for (const H5Dataset& dataset : H5Reader(file.path()).datasets()) {
      std::string bytes = file.whole;
      bytes[static_cast<std::size_t>(*dataset.offset)] ^= 1;
      file.write("m.h5", bytes);
      CHECK(contains(message_of<WeightError>(load), "tensor " + dataset.path + ": its bytes do not match"));
    }
  }
}

TEST_CASE("native: a flipped bit anywhere is an error or changes nothing") {
  const int flips = rounds(200);  // of each kind
  int errors = 0;
  for (const NativeOptions& kind : kKinds) {
    const NativeFile file(kind, tiny_texts());
    const Model original = open_model(file.path());
    const auto expected = weights_of(original);
    const std::vector<std::int32_t> ids = original.tokenizer->encode("The stages");
    const auto first_data = static_cast<std::int32_t>(H5Reader(file.path()).datasets().front().offset.value());
    for (int i = 0; i < flips; ++i) {
      const std::int32_t at =
          i % 8 != 0 ? pick(0, first_data - 1) : pick(0, static_cast<std::int32_t>(file.whole.size()) - 1);
      std::string bytes = file.whole;
      bytes[static_cast<std::size_t>(at)] ^= static_cast<char>(1 << pick(0, 7));
      file.write("m.h5", bytes);
      try {
        const Model model = open_model(file.path());
        const bool unchanged = same(model.config, original.config) && weights_of(model) == expected &&
                               model.tokenizer && model.tokenizer->encode("The stages") == ids;
        if (!unchanged) FAIL("byte " << at);
      } catch (const WeightError&) {
        ++errors;
      }
    }
  }
  CHECK(errors > static_cast<int>(std::size(kKinds)) * flips / 4);  // nearly half are: far enough away for chance
}

TEST_CASE("native: a file that is cut anywhere is refused") {
  for (const NativeOptions& kind : kKinds) {
    const NativeFile file(kind);
    std::vector<std::size_t> sizes = {0, 1, 8, 47, 48, file.whole.size() - 1};
    for (int i = 0; i < rounds(100); ++i)
      sizes.push_back(static_cast<std::size_t>(pick(0, static_cast<int>(file.whole.size()) - 1)));
    for (const H5Dataset& dataset : H5Reader(file.path()).datasets())
      sizes.push_back(static_cast<std::size_t>(*dataset.offset));
    for (const std::size_t size : sizes) {
      CAPTURE(size);
      CHECK(contains(file.error_of(file.whole.substr(0, size)), "/m.h5: "));
    }
  }
}

TEST_CASE("native: a file that shrinks after it was opened") {
  for (const NativeOptions& kind : kKinds) {
    const NativeFile file(kind);
    const Model model = open_model(file.path());
    std::filesystem::resize_file(file.path(), file.whole.size() - 1);
    CHECK(contains(message_of<WeightError>([&] { weights_of(model); }), "the file ends at byte"));
  }
}

TEST_CASE("native: other kinds, versions, and files without their last step") {
  const TemporaryDirectory directory;
  const std::string path = directory.name() + "/m.h5";
  const auto with = [&](const std::vector<std::pair<std::string, H5Value>>& attributes) {
    {
      H5Writer writer(path);
      for (const auto& [name, value] : attributes) writer.attribute("/", name, value);
      writer.begin_data();
      writer.close();
    }
    return message_of<WeightError>([&] { open_model(path); });
  };
  const std::pair<std::string, H5Value> format = {"format", std::string("stagecoach-model")};
  const std::pair<std::string, H5Value> version = {"format_version", std::int64_t{1}};
  CHECK(contains(with({}), "/m.h5: is an HDF5 file, but no model of stagecoach convert"));
  CHECK(contains(with({{"format", std::string("stagecoach-results")}}), "no model of stagecoach convert"));
  CHECK(contains(with({{"keras_version", std::string("2.15.0")}}), "give the directory"));
  CHECK(contains(with({format}), "has format_version missing"));
  CHECK(contains(with({format, {"format_version", std::int64_t{3}}}),
                 "has format_version 3, but this program reads versions 1 and 2"));
  const std::pair<std::string, H5Value> packed = {"format_version", std::int64_t{2}};
  CHECK(contains(with({format, packed}), "has layout missing or no text, but this program reads panels-64"));
  CHECK(contains(with({format, packed, {"layout", std::string("panels-128")}}),
                 "has layout panels-128, but this program reads panels-64; convert the model again"));
  CHECK(contains(with({format, packed, {"layout", std::string("panels-64")}}), "is an unfinished or damaged"));
  CHECK(contains(with({format, version}), "is an unfinished or damaged conversion"));
  CHECK(contains(with({format, version, {"contents", std::uint64_t{0}}}), "is an unfinished or damaged conversion"));
  CHECK(contains(with({format, version, {"contents", std::uint64_t{5}}}), "has no attribute n_layer"));
  std::vector<std::pair<std::string, H5Value>> all = {format, version, {"contents", std::uint64_t{5}}};
  for (const auto& [name, value] : config_fields(tiny_config())) {
    if (value.integer() != nullptr) all.emplace_back(name, *value.integer());
    if (value.boolean() != nullptr) all.emplace_back(name, *value.boolean());
    if (value.real() != nullptr) all.emplace_back(name, *value.real());
    if (value.string() != nullptr) all.emplace_back(name, *value.string());
  }
  CHECK(contains(with(all), "is an unfinished or damaged conversion"));
}

TEST_CASE("native: a directory with config.json is not a native one") {
  const NativeFile file;
  std::filesystem::rename(file.path(), file.path() + "x");
  std::filesystem::rename(file.path() + "x", file.name() + "/model.h5");
  CHECK_NOTHROW(open_model(file.name()));
  file.write("config.json", kTinyConfigJson);
  CHECK(contains(message_of<WeightError>([&] { open_model(file.name()); }), "has no weights"));
}

TEST_CASE("native: values that the dtype cannot hold, and values that are no numbers") {
  const float infinity = std::numeric_limits<float>::infinity();
  CHECK(odd_error(65519.0F, DType::kFloat16).empty());
  CHECK(contains(odd_error(65520.0F, DType::kFloat16),
                 "odd: tensor wpe.weight: element (0, 3) is 65520, too large for float16; choose another --dtype"));
  CHECK(contains(odd_error(-1e30F, DType::kFloat16), "tensor wpe.weight: element (0, 3) is -1e+30"));
  CHECK(odd_error(-1e30F, DType::kBFloat16).empty());
  CHECK(contains(odd_error(3.4e38F, DType::kBFloat16), "too large for bfloat16"));
  CHECK(odd_error(3.4e38F, DType::kFloat32).empty());
  CHECK(odd_error(3.4e38F, std::nullopt).empty());
  CHECK(odd_error(1e-40F, DType::kFloat16).empty());
  for (const auto dtype : {std::optional<DType>(), std::optional(DType::kFloat16), std::optional(DType::kFloat32)}) {
    CHECK(contains(odd_error(infinity, dtype), "tensor wpe.weight: element (0, 3) is inf, no finite number"));
    CHECK(contains(odd_error(std::nanf(""), dtype), "is nan, no finite number"));
  }
}

TEST_CASE("native: output that cannot be written leaves nothing behind") {
  const Model model = open_model("synthetic:gpt2,n_layer=1,n_head=1,n_embd=4,n_positions=4,vocab_size=9");
  CHECK_THROWS_AS(convert(model, "/does/not/exist/m.h5"), OutputError);
  const TemporaryDirectory directory;
  std::filesystem::create_directory(directory.path() / "m.h5");
  CHECK_THROWS_AS(convert(model, directory.name() + "/m.h5"), OutputError);
}
