// The weights of one stage on its backend, read from a WeightSource and packed piece by piece, or read packed.
//
// Matrices take the dtype asked for; gains and biases that add to the residual stream are float32, other biases of the
// backend's activation dtype; the position embedding is float32 beside int8.
// The token embedding is kept once, packed as the LM head needs it, also where a stage both embeds and has the head.
// Needs a few MiB of host memory beside the weights (loading_bytes): tensors are read ahead on a thread of their own.
// Packed matrices are read straight to their place by the backend's threads, after everything else; where the source
// has them mapped, in the dtype and the layout that the backend takes, they stay in the file and are only verified.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/backend.hpp"
#include "partition/model.hpp"
#include "runtime/weight_source.hpp"

namespace stagecoach {

// A (1, size) vector on the backend.
struct Vector {
  Buffer storage;
  Tensor view;
};

struct BlockWeights {
  Vector ln1_gain, ln1_bias, ln2_gain, ln2_bias;
  Matrix qkv;  // (n_embd, 3 * n_embd)
  Vector qkv_bias;
  Matrix proj;  // (n_embd, n_embd)
  Vector proj_bias;
  Matrix fc;  // (n_embd, n_inner)
  Vector fc_bias;
  Matrix out;  // (n_inner, n_embd)
  Vector out_bias;
};

struct StageWeights {
  Matrix token_embedding;     // (n_embd, vocab): on the first stage, and on the last one of a tied model
  Buffer position_storage;    // first stage
  Tensor position_embedding;  // (n_positions, n_embd)
  std::vector<BlockWeights> blocks;
  Vector final_gain, final_bias;  // last stage
  Matrix separate_head;           // (n_embd, vocab): last stage of a model that is not tied
  std::int64_t bytes = 0;         // on the backend: stage_weight_bytes (partition/stage_bytes.hpp)
  // Where matrices are that lie in a mapped file, which must outlive them; null where there are none.
  const WeightSource* mapped = nullptr;

  const Matrix& head() const { return separate_head.storage ? separate_head : token_embedding; }
};

// Host memory that load_stage takes beside the weights, at most: pieces that are read ahead or converted. On a backend
// in host memory they are its own.
std::int64_t loading_bytes(const WeightSource& source, const ModelConfig& config, BlockRange blocks, DType dtype,
                           const MemoryLayout& layout);

// Reads this stage's tensors and nothing else. `progress(done, total)` hears bytes of the source, between pieces, on
// the calling thread. int8 tensors need `dtype` int8 (require_convertible). Throws WeightError (names the tensor; also
// for values that are not finite or too large for `dtype`) and DeviceError.
StageWeights load_stage(Backend& backend, const WeightSource& source, const ModelConfig& config, BlockRange blocks,
                        DType dtype, const std::function<void(std::int64_t, std::int64_t)>& progress);

}  // namespace stagecoach
