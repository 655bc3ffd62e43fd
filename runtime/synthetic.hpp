// Models without files: "synthetic:gpt2-xl,n_layer=8,seed=3,dtype=float16".
//
// Every element is a function of (seed, tensor name, element index) alone, so any slice on any rank, in any
// order, gives the same weights. Element i takes 16 bits of a counter-based hash and picks one of up to 4095
// evenly spaced values:
//   embeddings and lm_head    uniform, mean 0, standard deviation 0.02
//   matrices of the blocks    uniform, mean 0, standard deviation 1/sqrt(rows), which keeps the size of
//   activations at
//                             every width (0.025 for 1600 rows), so that tiny models do not just repeat their
//                             prompt
//   gains 1 and biases 0, each plus a uniform value of standard deviation 0.02
// The spacing is a power of two that float16 holds exactly: float16 and float32 models have the same values,
// bfloat16 rounds them.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "runtime/weight_source.hpp"

namespace stagecoach {

struct SyntheticModel {
  ModelConfig config;
  std::uint64_t seed = 0;
  DType dtype = DType::kFloat16;
};

// Whether `name` starts with "synthetic:".
bool is_synthetic(std::string_view name);
// NAME is gpt2, gpt2-medium, gpt2-large or gpt2-xl. Keys are seed, dtype and the fields of config.json.
// Throws WeightError.
SyntheticModel parse_synthetic(std::string_view name);
std::unique_ptr<WeightSource> make_synthetic_source(const SyntheticModel& model);

}  // namespace stagecoach
