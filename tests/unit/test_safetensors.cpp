#include <doctest/doctest.h>

#include <cstring>
#include <thread>

#include "runtime/safetensors.hpp"
#include "tests/unit/safetensors_builder.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

std::vector<SafetensorsEntry> parse(const std::string& header, std::int64_t data_bytes) {
  return parse_safetensors_header(header, 100, data_bytes, "f");
}
std::string error_of(const std::string& header, std::int64_t data_bytes) {
  return message_of<WeightError>([&] { parse(header, data_bytes); });
}
std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return fmt::format(R"("{}":{{"dtype":"{}","shape":{},"data_offsets":{}}})", name, dtype, shape, offsets);
}
std::string one(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return fmt::format("{{{}}}", entry("a", dtype, shape, offsets));
}

std::string open_error(const TemporaryDirectory& directory, const ModelConfig& config = tiny_config()) {
  return message_of<WeightError>([&] { open_safetensors(directory.path(), config); });
}
std::string open_error(const std::vector<FakeTensor>& tensors, const ModelConfig& config = tiny_config()) {
  const TemporaryDirectory directory;
  directory.write("model.safetensors", safetensors(tensors));
  return open_error(directory, config);
}
FakeTensor& named(std::vector<FakeTensor>& tensors, std::string_view name) {
  for (FakeTensor& tensor : tensors) {
    if (tensor.name == name) return tensor;
  }
  throw std::logic_error("no such tensor");
}

std::vector<float> read(const WeightSource& source, const TensorSpec& spec, std::int64_t first, std::int64_t rows) {
  std::vector<float> values(static_cast<std::size_t>(rows * spec.cols));
  source.read_rows(spec, first, rows, std::as_writable_bytes(std::span(values)));
  return values;
}

void check_contents(const WeightSource& source, const ModelConfig& config) {
  float first = 0.0F;
  for (const TensorSpec& spec : tensor_table(config)) {
    CAPTURE(spec.name);
    CHECK(source.dtype_of(spec) == DType::kFloat32);
    const std::vector<float> values = read(source, spec, 0, spec.rows);
    CHECK(values.front() == first);
    CHECK(values.back() == first + static_cast<float>(spec.elements() - 1));
    CHECK(read(source, spec, spec.rows - 1, 1).front() == first + static_cast<float>((spec.rows - 1) * spec.cols));
    first += 1000.0F;
  }
}

}  // namespace

TEST_CASE("safetensors header: entries, metadata, padding, empty tensors") {
  const auto entries =
      parse(R"({"__metadata__":{"format":"pt"},)" + entry("b", "F16", "[2,3]", "[4,16]") + "," +
                entry("a", "F32", "[]", "[0,4]") + "," + entry("e", "I64", "[0,5]", "[16,16]") + "}    ",
            16);
  REQUIRE(entries.size() == 3);
  CHECK(entries[0].name == "b");
  CHECK(entries[0].dtype == "F16");
  CHECK(entries[0].shape == std::vector<std::int64_t>{2, 3});
  CHECK(entries[0].offset == 104);
  CHECK(entries[0].bytes == 12);
  CHECK(entries[1].offset == 100);
  CHECK(parse("{}", 0).empty());
}

TEST_CASE("safetensors header: each kind of damage") {
  struct Row {
    std::string header;
    std::int64_t data_bytes;
    const char* expected;
  };
  const Row rows[] = {
      {"[]", 0, "f: its header is a list, expected an object"},
      {"{", 0, "its header is no JSON"},
      {"{}x", 0, "its header is no JSON"},
      {R"({"a":1})", 0, "tensor a: its header entry is a number"},
      {R"({"__metadata__":[]})", 0, "__metadata__ is a list"},
      {R"({"__metadata__":{"a":1}})", 0, "__metadata__: a is a number, expected a string"},
      {R"({"a":{"shape":[1],"data_offsets":[0,4]}})", 4, "tensor a: the header has no dtype"},
      {R"({"a":{"dtype":"F32","data_offsets":[0,4]}})", 4, "has no shape"},
      {R"({"a":{"dtype":"F32","shape":[1]}})", 4, "has no data_offsets"},
      {R"({"a":{"dtype":7,"shape":[1],"data_offsets":[0,4]}})", 4, "dtype is not a string"},
      {one("F31", "[1]", "[0,4]"), 4, "tensor a: unknown dtype F31"},
      {one("F32", "1", "[0,4]"), 4, "shape is a number, expected a list"},
      {one("F32", "[-1]", "[0,4]"), 4, "no whole number"},
      {one("F32", "[1.0]", "[0,4]"), 4, "no whole number"},
      {one("F32", "[1]", "[0]"), 4, "not a begin and an end"},
      {one("F32", "[1]", "[0,4,8]"), 4, "not a begin and an end"},
      {one("F32", "[1]", "[4,0]"), 4, "not a begin and an end"},
      {one("F32", "[1]", "[-4,0]"), 4, "no whole number"},
      {one("F32", "[1]", "[0,99999999999999999999]"), 4, "no whole number"},
      {one("F32", "[2]", "[0,8]"), 4, "ends at byte 8 of the data, but the file holds only 4"},
      {one("F32", "[2]", "[0,4]"), 4, "has 4 bytes of data, but its shape and dtype make 8"},
      {one("F32", "[4611686018427387904]", "[0,0]"), 0, "its shape is too large"},
      {one("F32", "[4294967296,4294967296]", "[0,0]"), 0, "its shape is too large"},
      {one("U8", "[9223372036854775807,2,0]", "[0,0]"), 0, "its shape is too large"},
      {one("F32", "[1]", "[4,8]"), 8, "begins at byte 4 of the data, but the tensor before it ends at 0"},
      {one("F32", "[1]", "[0,4]"), 8, "the tensors end at byte 4 of the data, but the file holds 8"},
      {"{" + entry("a", "F32", "[2]", "[0,8]") + "," + entry("b", "F32", "[2]", "[4,12]") + "}", 12,
       "tensor b: begins at byte 4"},
      {"{" + entry("a", "F32", "[1]", "[0,4]") + "," + entry("b", "F32", "[1]", "[0,4]") + "}", 4, "begins at byte 0"},
      {"{" + entry("a", "F32", "[1]", "[0,4]") + "," + entry("b", "F32", "[1]", "[8,12]") + "}", 12,
       "tensor b: begins at byte 8"},
      {"{" + entry("a", "F32", "[1]", "[0,4]") + "," + entry("a", "F32", "[1]", "[4,8]") + "}", 8,
       "duplicate key \"a\""},
      {R"({"a\n\u0007":1})", 0, "tensor a\\x0a\\x07: "},
  };
  for (const Row& row : rows) {
    CAPTURE(row.header);
    const std::string error = error_of(row.header, row.data_bytes);
    CAPTURE(error);
    CHECK(contains(error, row.expected));
    CHECK(!contains(error, "\n"));
  }
}

TEST_CASE("safetensors: names with and without prefix, every value in its place") {
  for (const char* prefix : {"transformer.", ""}) {
    for (const bool tied : {true, false}) {
      ModelConfig config = tiny_config();
      config.tie_word_embeddings = tied;
      const TemporaryDirectory directory;
      directory.write("model.safetensors", safetensors(tensors_of(config, prefix)));
      const auto source = open_safetensors(directory.path(), config);
      CHECK(source->bytes_read() == 0);
      check_contents(*source, config);
    }
  }
}

TEST_CASE("safetensors: several threads may read at once") {
  const ModelConfig config = tiny_config();
  const TemporaryDirectory directory;
  directory.write("model.safetensors", safetensors(tensors_of(config)));
  const auto source = open_safetensors(directory.path(), config);
  std::vector<std::thread> threads;
  std::int64_t expected = 0;
  for (const TensorSpec& spec : tensor_table(config)) expected += 50 * spec.elements() * 4;
  for (int t = 0; t < 2; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 25; ++i) {
        for (const TensorSpec& spec : tensor_table(config)) read(*source, spec, 0, spec.rows);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(source->bytes_read() == expected);
}

TEST_CASE("safetensors: tensors of mixed dtypes") {
  const ModelConfig config = tiny_config();
  std::vector<FakeTensor> tensors = tensors_of(config);
  named(tensors, "transformer.ln_f.bias") = {"transformer.ln_f.bias", "BF16", {4}, std::string("\0\1\2\3\4\5\6\7", 8)};
  named(tensors, "transformer.ln_f.weight") = {
      "transformer.ln_f.weight", "F16", {4}, std::string("\7\6\5\4\3\2\1\0", 8)};
  const TemporaryDirectory directory;
  directory.write("model.safetensors", safetensors(tensors));
  const auto source = open_safetensors(directory.path(), config);
  const std::vector<TensorSpec> table = tensor_table(config);
  CHECK(source->dtype_of(table.front()) == DType::kFloat32);
  CHECK(source->dtype_of(table[table.size() - 2]) == DType::kFloat16);
  CHECK(source->dtype_of(table.back()) == DType::kBFloat16);
  std::array<std::byte, 8> bytes = {};
  source->read_rows(table.back(), 0, 1, bytes);
  CHECK(bytes[3] == std::byte{3});
}

TEST_CASE("safetensors: wrong models name the tensor") {
  const auto with = [](auto change) {
    std::vector<FakeTensor> tensors = tensors_of(tiny_config());
    change(tensors);
    return open_error(tensors);
  };
  CHECK(contains(
      with([](auto& t) { named(t, "transformer.h.1.ln_1.weight") = float_tensor("transformer.h.1.ln_1.weight", {3}); }),
      "/model.safetensors: tensor transformer.h.1.ln_1.weight: shape (3), expected (4)"));
  CHECK(contains(with([](auto& t) {
                   named(t, "transformer.h.1.mlp.c_fc.weight").shape = {6, 4};
                 }),
                 "shape (6, 4), expected (4, 6)"));
  CHECK(contains(with([](auto& t) {
                   named(t, "transformer.ln_f.bias").shape = {1, 4};
                 }),
                 "shape (1, 4), expected (4)"));
  CHECK(contains(with([](auto& t) {
                   named(t, "transformer.ln_f.bias") = {"transformer.ln_f.bias", "F64", {4}, std::string(32, '\0')};
                 }),
                 "tensor transformer.ln_f.bias: dtype F64, expected F32, F16 or BF16"));
  CHECK(contains(with([](auto& t) { t.erase(t.begin() + 5); }), "tensor h.0.attn.c_attn.bias: is missing"));
  CHECK(contains(with([](auto& t) { t.resize(3); }), "is missing (and "));
  CHECK(contains(with([](auto& t) { t.clear(); }), "tensor wte.weight: is missing (and 27 more)"));
  CHECK(contains(with([](auto& t) { t.push_back(float_tensor("transformer.h.2.ln_1.weight", {4})); }),
                 "tensor transformer.h.2.ln_1.weight: is no tensor of the GPT-2 model that config.json describes"));
  CHECK(contains(with([](auto& t) {
                   t.push_back(float_tensor("score.weight", {4}));
                   t.push_back(float_tensor("other", {4}));
                 }),
                 "tensor other: is no tensor of the GPT-2 model that config.json describes (and 1 more)"));
  CHECK(
      contains(with([](auto& t) { t.push_back(float_tensor("ln_f.bias", {4})); }), "tensor ln_f.bias: is there twice"));
  CHECK(contains(with([](auto& t) { t.push_back(float_tensor("transformer.transformer.x", {4})); }), "is no tensor"));
}

TEST_CASE("safetensors: mask buffers are skipped whatever they are, and nothing else is") {
  std::vector<FakeTensor> tensors = tensors_of(tiny_config());
  tensors.push_back({"transformer.h.0.attn.bias", "U8", {1, 1, 5, 5}, std::string(25, '\1')});
  tensors.push_back({"h.0.attn.bias", "BOOL", {1, 1, 5, 5}, std::string(25, '\1')});
  tensors.push_back({"h.1.attn.masked_bias", "F64", {}, std::string(8, '\0')});
  CHECK(open_error(tensors).empty());
  for (const char* name : {"h.x.attn.bias", "h..attn.bias", "h.0.attn.bias2", "attn.bias", "h.0.attn"}) {
    std::vector<FakeTensor> more = tensors;
    more.push_back(float_tensor(name, {1}));
    CHECK(contains(open_error(more), fmt::format("tensor {}: is no tensor", name)));
  }
}

TEST_CASE("safetensors: a stored head of a tied model must equal the embedding") {
  const ModelConfig config = tiny_config();
  const TensorSpec embedding = tensor_table(config).front();
  std::vector<FakeTensor> tensors = tensors_of(config);
  tensors.push_back(float_tensor("lm_head.weight", {7, 4}));
  {
    const TemporaryDirectory directory;
    directory.write("model.safetensors", safetensors(tensors));
    const auto source = open_safetensors(directory.path(), config);
    check_contents(*source, config);
  }
  tensors.back().bytes[3 * 16 + 5] ^= 1;  // row 3
  {
    const TemporaryDirectory directory;
    directory.write("model.safetensors", safetensors(tensors));
    const auto source = open_safetensors(directory.path(), config);
    CHECK_NOTHROW(read(*source, embedding, 0, 3));
    CHECK_NOTHROW(read(*source, embedding, 4, 3));
    const std::string error = message_of<WeightError>([&] { read(*source, embedding, 0, 7); });
    CHECK(contains(error, "tensor lm_head.weight: config.json ties it to wte.weight, but its values differ; set"));
  }
  tensors.back() = {"lm_head.weight", "F16", {7, 4}, std::string(56, '\0')};
  CHECK(contains(open_error(tensors), "it is F16 (7, 4) and wte.weight F32 (7, 4)"));
}

TEST_CASE("safetensors: an untied model needs its head") {
  ModelConfig untied = tiny_config();
  untied.tie_word_embeddings = false;
  const std::string error = open_error(tensors_of(tiny_config()), untied);
  CHECK(contains(error, "tensor lm_head.weight: is missing; config.json has tie_word_embeddings false"));
}

TEST_CASE("safetensors: files that are cut, empty or no safetensors at all") {
  const ModelConfig config = tiny_config();
  const std::string whole = safetensors(tensors_of(config));
  const TemporaryDirectory directory;
  for (std::size_t n = 0; n < whole.size(); ++n) {
    directory.write("model.safetensors", std::string_view(whole).substr(0, n));
    const std::string error = open_error(directory);
    if (!contains(error, "/model.safetensors: ")) FAIL("cut at " << n << ": " << error);
  }
  directory.write("model.safetensors", whole + "x");
  CHECK(contains(open_error(directory), "the tensors end at byte"));
  directory.write("model.safetensors", "PK\x03\x04 a zip archive, as pytorch_model.bin is");
  CHECK(contains(open_error(directory), "is it a safetensors file?"));
  directory.write("model.safetensors", with_length(std::string(3, '{'), "").substr(0, 10));
  CHECK(contains(open_error(directory), "ends inside its header of 3 bytes"));
}

TEST_CASE("safetensors: a file that shrinks after it was opened") {
  const ModelConfig config = tiny_config();
  const TemporaryDirectory directory;
  directory.write("model.safetensors", safetensors(tensors_of(config)));
  const auto source = open_safetensors(directory.path(), config);
  const TensorSpec last = tensor_table(config).back();
  std::filesystem::resize_file(directory.path() / "model.safetensors",
                               std::filesystem::file_size(directory.path() / "model.safetensors") - 6);
  const std::string error = message_of<WeightError>([&] { read(*source, last, 0, 1); });
  CHECK(contains(error, "/model.safetensors: tensor transformer.ln_f.bias: the file ends at byte"));
}

TEST_CASE("safetensors: reads outside a tensor or into a short buffer are the caller's mistake") {
  const ModelConfig config = tiny_config();
  const TemporaryDirectory directory;
  directory.write("model.safetensors", safetensors(tensors_of(config)));
  const auto source = open_safetensors(directory.path(), config);
  TensorSpec spec = tensor_table(config).front();
  std::vector<std::byte> bytes(7 * 16);
  CHECK_THROWS_AS(source->read_rows(spec, 0, 8, bytes), std::invalid_argument);
  CHECK_THROWS_AS(source->read_rows(spec, INT64_MAX, 1, bytes), std::invalid_argument);
  CHECK_THROWS_AS(source->read_rows(spec, 0, 7, std::span(bytes).first(111)), std::invalid_argument);
  CHECK_NOTHROW(source->read_rows(spec, 7, 0, {}));
  spec.name = "h.9.ln_1.weight";
  CHECK_THROWS_AS(source->read_rows(spec, 0, 1, bytes), std::invalid_argument);
}
