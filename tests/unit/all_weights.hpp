// The bytes of all tensors of a model, read and verified as loading does, one after the other.
#pragma once

#include <optional>
#include <string>

#include "runtime/tensor_pieces.hpp"
#include "runtime/weight_source.hpp"

namespace stagecoach::test {

inline std::string all_weights(const std::string& model_name) {
  const Model model = open_model(model_name);
  std::string all;
  TensorReader reader(*model.weights);
  for (const TensorSpec& spec : tensor_table(model.config)) {
    reader.read_in_pieces(spec, std::nullopt, [&](std::int64_t, Tensor piece) {
      all.append(static_cast<const char*>(piece.data), static_cast<std::size_t>(piece.bytes()));
    });
  }
  return all;
}

}  // namespace stagecoach::test
