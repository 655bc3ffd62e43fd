// Keras checkpoints as Hugging Face's TensorFlow classes write them, made of the tensors of safetensors_builder.hpp.
#pragma once

#include <string>
#include <vector>

#include "runtime/hdf5_file.hpp"
#include "tests/unit/safetensors_builder.hpp"

namespace stagecoach::test {

constexpr const char* kKerasRoot = "/transformer/tfgp_t2lm_head_model/transformer/";

// "h_._0/attn/c_attn/bias:0" for "h.0.attn.c_attn.bias".
inline std::string keras_name(const std::string& name, const std::string& wte) {
  if (name == "wte.weight") return "wte/" + wte + ":0";
  if (name == "wpe.weight") return "wpe/embeddings:0";
  std::string path = name;
  const bool norm = path.find("ln_") != std::string::npos;
  std::size_t begin = 0;
  if (path.starts_with("h.")) {
    path.replace(0, 2, "h_._");
    begin = 4;
  }
  for (std::size_t dot = path.find('.', begin); dot != std::string::npos; dot = path.find('.', begin)) path[dot] = '/';
  const std::size_t last = path.rfind('/') + 1;
  if (norm) path.replace(last, std::string::npos, path.substr(last) == "weight" ? "gamma" : "beta");
  return path + ":0";
}

// Writes `tensors` (names without prefix). Biases of matrices get the shape (1, n), as Keras has them.
inline void write_keras(const std::string& file, const std::vector<FakeTensor>& tensors,
                        const std::string& root = kKerasRoot, const std::string& wte = "weight") {
  H5Writer writer(file);
  writer.attribute("/", "backend", std::string("tensorflow"));
  writer.attribute("/", "keras_version", std::string("2.15.0"));
  writer.group("/top_level_model_weights");
  const auto path = [&](const FakeTensor& tensor) { return root + keras_name(tensor.name, wte); };
  for (const FakeTensor& tensor : tensors) {
    std::vector<std::int64_t> shape = tensor.shape;
    if (path(tensor).ends_with("/bias:0")) shape.insert(shape.begin(), 1);
    const H5Element element = tensor.dtype == "F16"   ? H5Element::kFloat16
                              : tensor.dtype == "F32" ? H5Element::kFloat32
                                                      : H5Element::kFloat64;
    writer.dataset(path(tensor), element, shape);
  }
  writer.begin_data();
  for (const FakeTensor& tensor : tensors) writer.write(path(tensor), 0, std::as_bytes(std::span(tensor.bytes)));
  writer.close();
}

}  // namespace stagecoach::test
