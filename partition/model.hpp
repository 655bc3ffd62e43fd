// Dimensions and arithmetic of a GPT-2 model, and the one table of its tensors: names, shapes and where they live.
//
// Every reader, writer, loader and cost model takes names and shapes from here. Knows no files and no devices.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace stagecoach {

// A plan, run file or model description that is wrong: what, where, and what would work.
class PlanError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

enum class ActivationName : std::uint8_t { kGeluNew, kGelu, kGeluPytorchTanh, kRelu, kSilu };

// Fields and defaults are those of Hugging Face's GPT2Config.
struct ModelConfig {
  std::int32_t n_layer = 12;
  std::int32_t n_head = 12;
  std::int32_t n_embd = 768;
  std::int32_t n_inner = 3072;  // resolved: 4 * n_embd when the file says null
  std::int32_t n_positions = 1024;
  std::int32_t vocab_size = 50257;
  ActivationName activation = ActivationName::kGeluNew;
  float layer_norm_epsilon = 1e-5F;
  bool scale_attn_weights = true;
  bool scale_attn_by_inverse_layer_idx = false;
  bool reorder_and_upcast_attn = false;  // only moves roundings in 16-bit arithmetic; ours is float32 throughout
  bool tie_word_embeddings = true;
  std::int32_t eos_token_id = 50256;  // -1: none

  std::int32_t head_dim() const { return n_embd / n_head; }
  // Factor on q k^T in block `block`: 1/sqrt(head_dim) and 1/(block+1) as the two scale_* fields say.
  float attention_scale(std::int32_t block) const;
};

// Throws PlanError that names the field when dimensions are impossible (n_embd not divisible by n_head, zero, too
// large).
void validate(const ModelConfig& config);

enum class TensorPlace : std::uint8_t { kEmbedding, kBlock, kFinal };  // wte and wpe, one block's, ln_f and lm_head

// Which tensor of its place; the loader switches on it.
enum class TensorRole : std::uint8_t {
  kTokenEmbedding,
  kPositionEmbedding,
  kLn1Gain,
  kLn1Bias,
  kQkvWeight,
  kQkvBias,
  kProjWeight,
  kProjBias,
  kLn2Gain,
  kLn2Bias,
  kFcWeight,
  kFcBias,
  kOutWeight,
  kOutBias,
  kFinalGain,
  kFinalBias,
  kHeadWeight,
};

struct TensorSpec {
  std::string name;  // Hugging Face's, without "transformer.": "h.3.attn.c_attn.weight"
  TensorRole role;
  TensorPlace place;
  std::int32_t block = -1;  // for kBlock
  std::int64_t rows = 1;    // vectors are (1, cols)
  std::int64_t cols = 0;
  bool is_vector = false;  // stored with one dimension
  std::int64_t elements() const { return rows * cols; }
};

// Contiguous blocks [first_block, last_block], both inclusive; the first stage embeds, the last has ln_f and the head.
struct BlockRange {
  std::int32_t first = 0;
  std::int32_t last = 0;
  std::int32_t count() const { return last - first + 1; }
  bool operator==(const BlockRange&) const = default;
};

// All tensors of the model, in the order embedding, blocks, final. lm_head.weight only when it is not tied.
std::vector<TensorSpec> tensor_table(const ModelConfig& config);
// Those that the stage with these blocks needs. The last stage of a tied model also needs wte (as its head).
std::vector<TensorSpec> stage_tensors(const ModelConfig& config, BlockRange blocks);
std::int64_t parameter_count(const ModelConfig& config);

}  // namespace stagecoach
