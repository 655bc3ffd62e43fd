// The bytes of all tensors of a model, read and verified as loading does, one after the other.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "runtime/packed_tensor.hpp"
#include "runtime/tensor_pieces.hpp"
#include "runtime/weight_source.hpp"

namespace stagecoach::test {

inline std::string verified_bytes(const WeightSource& source, const TensorSpec& spec) {
  std::string all;
  if (source.is_packed(spec)) {
    PackedReader reader(source, spec, source.dtype_of(spec));
    all.resize(static_cast<std::size_t>(reader.layout().bytes()));
    reader.read(0, reader.layout().panels(), reinterpret_cast<std::byte*>(all.data()));
    reader.finish();
    return all;
  }
  TensorReader reader(source);
  reader.read_in_pieces(spec, std::nullopt, [&](std::int64_t, Tensor piece) {
    all.append(static_cast<const char*>(piece.data), static_cast<std::size_t>(piece.bytes()));
  });
  return all;
}

inline std::vector<std::string> weights_of(const Model& model) {
  std::vector<std::string> all;
  for (const TensorSpec& spec : tensor_table(model.config)) all.push_back(verified_bytes(*model.weights, spec));
  return all;
}

inline std::string all_weights(const std::string& model_name) {
  std::string all;
  for (const std::string& bytes : weights_of(open_model(model_name))) all += bytes;
  return all;
}

}  // namespace stagecoach::test
