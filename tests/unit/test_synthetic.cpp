#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "kernels/convert.hpp"
#include "runtime/synthetic.hpp"
#include "tests/unit/safetensors_builder.hpp"

using namespace stagecoach;
using stagecoach::test::contains;
using stagecoach::test::message_of;

namespace {

struct Opened {
  SyntheticModel model;
  std::unique_ptr<WeightSource> weights;
  std::map<std::string, TensorSpec> tensors;

  explicit Opened(const std::string& name) : model(parse_synthetic(name)), weights(make_synthetic_source(model)) {
    for (const TensorSpec& spec : tensor_table(model.config)) tensors.emplace(spec.name, spec);
  }
  std::vector<std::byte> rows(const std::string& tensor, std::int64_t first, std::int64_t count) const {
    const TensorSpec& spec = tensors.at(tensor);
    std::vector<std::byte> bytes(static_cast<std::size_t>(count * spec.cols * size_of(model.dtype)));
    weights->read_rows(spec, first, count, bytes);
    return bytes;
  }
  std::vector<float> values(const std::string& tensor) const {
    const TensorSpec& spec = tensors.at(tensor);
    const std::vector<std::byte> bytes = rows(tensor, 0, spec.rows);
    std::vector<float> result;
    for (std::int64_t i = 0; i < spec.elements(); ++i) result.push_back(load_element(bytes.data(), model.dtype, i));
    return result;
  }
};

std::string error_of(const std::string& name) {
  return message_of<WeightError>([&] { parse_synthetic(name); });
}

constexpr const char* kOdd = "synthetic:gpt2,n_layer=2,n_head=3,n_embd=39,n_inner=50,n_positions=17,vocab_size=101";

double mean_of(const std::vector<float>& values) {
  double sum = 0.0;
  for (const float value : values) sum += value;
  return sum / static_cast<double>(values.size());
}
double deviation_of(const std::vector<float>& values) {
  const double mean = mean_of(values);
  double sum = 0.0;
  for (const float value : values) sum += (value - mean) * (value - mean);
  return std::sqrt(sum / static_cast<double>(values.size()));
}

}  // namespace

TEST_CASE("synthetic: names and keys") {
  const SyntheticModel model = parse_synthetic("synthetic:gpt2-xl,n_positions=16384,n_layer=8,seed=3,dtype=bfloat16");
  CHECK(model.config.n_layer == 8);
  CHECK(model.config.n_head == 25);
  CHECK(model.config.n_embd == 1600);
  CHECK(model.config.n_inner == 6400);
  CHECK(model.config.n_positions == 16384);
  CHECK(model.seed == 3);
  CHECK(model.dtype == DType::kBFloat16);
  const SyntheticModel plain = parse_synthetic("synthetic:gpt2");
  CHECK(plain.dtype == DType::kFloat16);
  CHECK(plain.seed == 0);
  CHECK(plain.config.eos_token_id == 50256);
  const ModelConfig other = parse_synthetic(
                                "synthetic:gpt2,activation_function=relu,tie_word_embeddings=false,"
                                "layer_norm_epsilon=0.01,n_embd=48,eos_token_id=null,scale_attn_weights=false")
                                .config;
  CHECK(other.activation == ActivationName::kRelu);
  CHECK(!other.tie_word_embeddings);
  CHECK(other.layer_norm_epsilon == 0.01F);
  CHECK(other.n_inner == 192);
  CHECK(other.eos_token_id == -1);
  CHECK(!other.scale_attn_weights);
  CHECK(is_synthetic("synthetic:anything"));
  CHECK(!is_synthetic("/data/synthetic:gpt2"));
}

TEST_CASE("synthetic: mistakes say what is known") {
  CHECK(error_of("synthetic:gpt3") ==
        "synthetic:gpt3: unknown model \"gpt3\"; known are gpt2, gpt2-medium, gpt2-large, gpt2-xl");
  CHECK(contains(error_of("synthetic:"), "known are gpt2"));
  CHECK(contains(error_of("synthetic:gpt2,layers=3"), "unknown key \"layers\"; known are seed, dtype, n_layer"));
  CHECK(contains(error_of("synthetic:gpt2,model_type=gpt2"), "unknown key"));
  CHECK(contains(error_of("synthetic:gpt2,n_layer"), "write n_layer=VALUE"));
  CHECK(contains(error_of("synthetic:gpt2,n_layer=3,n_layer=4"), "given twice"));
  CHECK(contains(error_of("synthetic:gpt2,n_layer=x"), "n_layer: is \"x\", expected a whole number"));
  CHECK(contains(error_of("synthetic:gpt2,n_layer="), "n_layer"));
  CHECK(contains(error_of("synthetic:gpt2,n_layer=0"), "n_layer"));
  CHECK(contains(error_of("synthetic:gpt2,n_head=5"), "not divisible"));
  CHECK(contains(error_of("synthetic:gpt2,dtype=int8"), "float32, float16 or bfloat16"));
  CHECK(contains(error_of("synthetic:gpt2,seed=-1"), "seed"));
  CHECK(contains(error_of("synthetic:gpt2,,seed=1"), "unknown key \"\""));
  CHECK(contains(error_of("synthetic:gpt2,"), "ends with a comma"));
}

TEST_CASE("synthetic: the same name gives the same weights, whatever the slices") {
  for (const char* dtype : {"float32", "float16", "bfloat16"}) {
    CAPTURE(dtype);
    const Opened a(std::string(kOdd) + ",dtype=" + dtype);
    const Opened b(std::string(kOdd) + ",dtype=" + dtype);
    for (const char* tensor : {"wte.weight", "h.1.attn.c_attn.weight", "h.0.mlp.c_proj.weight"}) {
      const std::int64_t rows = a.tensors.at(tensor).rows;
      const std::vector<std::byte> whole = a.rows(tensor, 0, rows);
      CHECK(b.rows(tensor, 0, rows) == whole);
      const std::size_t row_bytes = whole.size() / static_cast<std::size_t>(rows);
      for (std::int64_t first = 0; first < rows; ++first) {  // 39 columns: slices begin at every residue of 4
        for (const std::int64_t count : {std::int64_t{0}, std::int64_t{1}, std::int64_t{3}, rows - first}) {
          if (count > rows - first) continue;
          const std::vector<std::byte> slice = b.rows(tensor, first, count);
          CHECK(std::equal(slice.begin(), slice.end(), whole.begin() + first * static_cast<std::int64_t>(row_bytes)));
        }
      }
    }
  }
}

TEST_CASE("synthetic: weights are the same on every machine and in every version") {
  const Opened model("synthetic:gpt2,dtype=float32,seed=3");
  const std::vector<std::byte> row = model.rows("h.1.ln_1.bias", 0, 1);
  std::uint64_t hash = 0xcbf29ce484222325U;
  for (const std::byte byte : row) hash = (hash ^ static_cast<std::uint64_t>(byte)) * 0x100000001b3U;
  CHECK(hash == 0x26972b26e4a24cb1U);
}

TEST_CASE("synthetic: seeds and tensors differ, dimensions of others do not matter") {
  const Opened a(kOdd);
  const Opened b(std::string(kOdd) + ",seed=1");
  CHECK(a.rows("wte.weight", 0, 1) != b.rows("wte.weight", 0, 1));
  CHECK(a.rows("h.0.ln_1.bias", 0, 1) != a.rows("h.1.ln_1.bias", 0, 1));
  CHECK(a.rows("h.0.attn.c_attn.weight", 0, 1) != a.rows("h.1.attn.c_attn.weight", 0, 1));
  const Opened deeper("synthetic:gpt2,n_layer=7,n_head=3,n_embd=39,n_inner=50,n_positions=99,vocab_size=101");
  CHECK(a.rows("h.1.mlp.c_fc.weight", 0, 39) == deeper.rows("h.1.mlp.c_fc.weight", 0, 39));
}

TEST_CASE("synthetic: float16 holds the values of float32, bfloat16 rounds them") {
  const Opened single(std::string(kOdd) + ",dtype=float32");
  const Opened half(std::string(kOdd) + ",dtype=float16");
  const Opened brain(std::string(kOdd) + ",dtype=bfloat16");
  for (const auto& [name, spec] : single.tensors) {
    CAPTURE(name);
    const std::vector<float> values = single.values(name);
    CHECK(values == half.values(name));
    const std::vector<float> rounded = brain.values(name);
    bool equal = true;
    for (std::size_t i = 0; i < values.size(); ++i) equal = equal && rounded[i] == bf16_to_f32(f32_to_bf16(values[i]));
    CHECK(equal);
  }
}

TEST_CASE("synthetic: moments") {
  const Opened model("synthetic:gpt2,dtype=float32,n_layer=1");
  struct Row {
    const char* name;
    double mean, deviation;
  };
  const Row rows[] = {{"wpe.weight", 0.0, 0.02},
                      {"h.0.attn.c_attn.weight", 0.0, 1.0 / std::sqrt(768.0)},
                      {"h.0.mlp.c_proj.weight", 0.0, 1.0 / std::sqrt(3072.0)},
                      {"h.0.ln_1.weight", 1.0, 0.02},
                      {"h.0.mlp.c_fc.bias", 0.0, 0.02}};
  for (const Row& row : rows) {
    CAPTURE(row.name);
    const std::vector<float> values = model.values(row.name);
    const auto n = static_cast<double>(values.size());
    // Standard errors: deviation / sqrt(n) for the mean; for the deviation of uniform values about 0.45 of
    // that.
    CHECK(std::abs(mean_of(values) - row.mean) < 5.0 * row.deviation / std::sqrt(n));
    CHECK(std::abs(deviation_of(values) / row.deviation - 1.0) < 0.03 + 5.0 / std::sqrt(n));
    double product = 0.0;  // neighbours are independent
    for (std::size_t i = 1; i < values.size(); ++i) product += (values[i] - row.mean) * (values[i - 1] - row.mean);
    CHECK(std::abs(product / n) < 5.0 * row.deviation * row.deviation / std::sqrt(n));
  }
}

TEST_CASE("synthetic: reads are checked and counted") {
  const Opened model(kOdd);
  const TensorSpec& spec = model.tensors.at("wpe.weight");
  std::vector<std::byte> bytes(static_cast<std::size_t>(spec.elements() * 2));
  CHECK_THROWS_AS(model.weights->read_rows(spec, 16, 2, bytes), std::invalid_argument);
  CHECK_THROWS_AS(model.weights->read_rows(spec, -1, 1, bytes), std::invalid_argument);
  CHECK_THROWS_AS(model.weights->read_rows(spec, 0, 17, std::span(bytes).first(bytes.size() - 1)),
                  std::invalid_argument);
  CHECK(model.weights->bytes_read() == 0);
  model.weights->read_rows(spec, 0, 17, bytes);
  CHECK(model.weights->bytes_read() == static_cast<std::int64_t>(bytes.size()));
}
