#include <doctest/doctest.h>

#include "runtime/keras_h5.hpp"
#include "runtime/safetensors.hpp"
#include "tests/unit/keras_builder.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

std::vector<std::byte> bytes_of(const WeightSource& source, const TensorSpec& spec) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(spec.elements() * size_of(source.dtype_of(spec))));
  source.read_rows(spec, 0, spec.rows, bytes);
  return bytes;
}

struct KerasDirectory : TemporaryDirectory {
  KerasDirectory() { write("config.json", kTinyConfigJson); }
  std::string file() const { return name() + "/tf_model.h5"; }
};

std::string error_with(const std::vector<FakeTensor>& tensors) {
  const KerasDirectory directory;
  write_keras(directory.file(), tensors);
  return message_of<WeightError>([&] { open_model(directory.name()); });
}

}  // namespace

TEST_CASE("keras: paths become Hugging Face's names") {
  const std::string root = kKerasRoot;
  CHECK(name_of_keras_path(root + "wte/weight:0") == "wte.weight");
  CHECK(name_of_keras_path(root + "wte/embeddings:0") == "wte.weight");
  CHECK(name_of_keras_path(root + "h_._11/ln_2/beta:0") == "h.11.ln_2.bias");
  CHECK(name_of_keras_path(root + "h_._0/attn/c_attn/weight:0") == "h.0.attn.c_attn.weight");
  CHECK(name_of_keras_path("/transformer/tfgpt2_model/transformer/ln_f/gamma:0") == "ln_f.weight");
  CHECK(name_of_keras_path("/elsewhere/kernel:0") == "/elsewhere/kernel:0");
}

TEST_CASE("keras: the same bytes as the safetensors original, whatever the class and version") {
  const ModelConfig config = tiny_config();
  const std::vector<FakeTensor> tensors = tensors_of(config, "");
  const KerasDirectory original;
  original.write("model.safetensors", safetensors(tensors));
  const auto expected = open_safetensors(original.path(), config);
  for (const char* root : {kKerasRoot, "/transformer/tfgpt2_model/transformer/", "/transformer/"}) {
    for (const char* wte : {"weight", "embeddings"}) {
      const KerasDirectory directory;
      write_keras(directory.file(), tensors, root, wte);
      const Model model = open_model(directory.name());
      CHECK(model.weights->bytes_read() == 0);
      for (const TensorSpec& spec : tensor_table(config)) {
        CAPTURE(spec.name);
        CHECK(model.weights->dtype_of(spec) == DType::kFloat32);
        CHECK(bytes_of(*model.weights, spec) == bytes_of(*expected, spec));
      }
    }
  }
}

TEST_CASE("keras: safetensors beside it wins") {
  const KerasDirectory directory;
  directory.write("tf_model.h5", "not even HDF5");
  CHECK(contains(message_of<WeightError>([&] { open_model(directory.name()); }), "/tf_model.h5: "));
  directory.write("model.safetensors", safetensors(tensors_of(tiny_config())));
  CHECK_NOTHROW(open_model(directory.name()));
}

TEST_CASE("keras: wrong models name the dataset") {
  const std::vector<FakeTensor> tensors = tensors_of(tiny_config(), "");
  std::vector<FakeTensor> changed = tensors;
  changed[3] = float_tensor(changed[3].name, {5});
  CHECK(contains(error_with(changed), "/h_._0/ln_1/beta:0: shape (5), expected (4)"));
  changed = tensors;
  changed[4] = {changed[4].name, "F64", changed[4].shape, changed[4].bytes + changed[4].bytes};
  CHECK(contains(error_with(changed),
                 "/h_._0/attn/c_attn/weight:0: dtype float64, expected float32, float16 or bfloat16"));
  changed = tensors;
  changed.pop_back();
  CHECK(contains(error_with(changed), "/tf_model.h5: tensor ln_f.bias: is missing"));
  changed = tensors;
  changed.push_back(float_tensor("h.2.ln_1.weight", {4}));
  CHECK(
      contains(error_with(changed), "/h_._2/ln_1/gamma:0: is no tensor of the GPT-2 model that config.json describes"));
}

TEST_CASE("keras: a dataset without bytes of its own is refused with advice") {
  const KerasDirectory directory;
  {
    H5Writer writer(directory.file());
    writer.dataset(std::string(kKerasRoot) + "wte/weight:0", H5Element::kFloat32, {7, 4});
    writer.begin_data();
    writer.close();
  }
  CHECK(contains(message_of<WeightError>([&] { open_model(directory.name()); }), "h5repack -l CONTI"));
}

TEST_CASE("keras: the file itself is no model") {
  const KerasDirectory directory;
  write_keras(directory.file(), tensors_of(tiny_config(), ""));
  CHECK(contains(message_of<WeightError>([&] { open_model(directory.file()); }), "give the directory"));
}
