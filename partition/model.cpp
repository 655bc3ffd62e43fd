#include "partition/model.hpp"

#include <fmt/format.h>

#include <cmath>
#include <utility>

namespace stagecoach {
namespace {

// Bounds keep every product of two dimensions, and byte offsets of whole tensors, far inside 64 bits.
constexpr std::int32_t kMaxDimension = 1 << 24;

void require_range(const char* field, std::int64_t value, std::int64_t low, std::int64_t high) {
  if (value < low || value > high) {
    throw PlanError(fmt::format("{} is {}, which is outside {} to {}", field, value, low, high));
  }
}

TensorSpec vector_of(std::string name, TensorRole role, TensorPlace place, std::int64_t size, std::int32_t block = -1) {
  return {std::move(name), role, place, block, 1, size, true};
}

TensorSpec matrix_of(std::string name, TensorRole role, TensorPlace place, std::int64_t rows, std::int64_t cols,
                     std::int32_t block = -1) {
  return {std::move(name), role, place, block, rows, cols, false};
}

void append_block(const ModelConfig& c, std::int32_t block, std::vector<TensorSpec>& table) {
  const std::int64_t n = c.n_embd;
  const std::int64_t inner = c.n_inner;
  const std::string h = fmt::format("h.{}.", block);
  const auto vec = [&](const char* name, TensorRole role, std::int64_t size) {
    table.push_back(vector_of(h + name, role, TensorPlace::kBlock, size, block));
  };
  const auto mat = [&](const char* name, TensorRole role, std::int64_t rows, std::int64_t cols) {
    table.push_back(matrix_of(h + name, role, TensorPlace::kBlock, rows, cols, block));
  };
  vec("ln_1.weight", TensorRole::kLn1Gain, n);
  vec("ln_1.bias", TensorRole::kLn1Bias, n);
  mat("attn.c_attn.weight", TensorRole::kQkvWeight, n, 3 * n);
  vec("attn.c_attn.bias", TensorRole::kQkvBias, 3 * n);
  mat("attn.c_proj.weight", TensorRole::kProjWeight, n, n);
  vec("attn.c_proj.bias", TensorRole::kProjBias, n);
  vec("ln_2.weight", TensorRole::kLn2Gain, n);
  vec("ln_2.bias", TensorRole::kLn2Bias, n);
  mat("mlp.c_fc.weight", TensorRole::kFcWeight, n, inner);
  vec("mlp.c_fc.bias", TensorRole::kFcBias, inner);
  mat("mlp.c_proj.weight", TensorRole::kOutWeight, inner, n);
  vec("mlp.c_proj.bias", TensorRole::kOutBias, n);
}

}  // namespace

float ModelConfig::attention_scale(std::int32_t block) const {
  double scale = 1.0;
  if (scale_attn_weights) scale /= std::sqrt(static_cast<double>(head_dim()));
  if (scale_attn_by_inverse_layer_idx) scale /= static_cast<double>(block + 1);
  return static_cast<float>(scale);
}

void validate(const ModelConfig& c) {
  require_range("n_layer", c.n_layer, 1, 100000);
  require_range("n_head", c.n_head, 1, kMaxDimension);
  require_range("n_embd", c.n_embd, 1, kMaxDimension);
  require_range("n_inner", c.n_inner, 1, kMaxDimension);
  require_range("n_positions", c.n_positions, 1, 1 << 30);
  require_range("vocab_size", c.vocab_size, 1, kMaxDimension);
  if (c.n_embd % c.n_head != 0) {
    throw PlanError(fmt::format("n_embd {} is not divisible by n_head {}", c.n_embd, c.n_head));
  }
  if (!(c.layer_norm_epsilon > 0.0F) || !std::isfinite(c.layer_norm_epsilon)) {
    throw PlanError(fmt::format("layer_norm_epsilon is {}, which is not a positive number", c.layer_norm_epsilon));
  }
}

std::vector<TensorSpec> tensor_table(const ModelConfig& c) {
  return stage_tensors(c, {0, c.n_layer - 1});
}

std::vector<TensorSpec> stage_tensors(const ModelConfig& c, BlockRange blocks) {
  const bool first = blocks.first == 0;
  const bool last = blocks.last == c.n_layer - 1;
  std::vector<TensorSpec> table;
  if (first || (last && c.tie_word_embeddings)) {
    table.push_back(
        matrix_of("wte.weight", TensorRole::kTokenEmbedding, TensorPlace::kEmbedding, c.vocab_size, c.n_embd));
  }
  if (first) {
    table.push_back(
        matrix_of("wpe.weight", TensorRole::kPositionEmbedding, TensorPlace::kEmbedding, c.n_positions, c.n_embd));
  }
  for (std::int32_t block = blocks.first; block <= blocks.last; ++block) append_block(c, block, table);
  if (!last) return table;
  table.push_back(vector_of("ln_f.weight", TensorRole::kFinalGain, TensorPlace::kFinal, c.n_embd));
  table.push_back(vector_of("ln_f.bias", TensorRole::kFinalBias, TensorPlace::kFinal, c.n_embd));
  if (!c.tie_word_embeddings) {
    table.push_back(matrix_of("lm_head.weight", TensorRole::kHeadWeight, TensorPlace::kFinal, c.vocab_size, c.n_embd));
  }
  return table;
}

std::int64_t parameter_count(const ModelConfig& c) {
  std::int64_t count = 0;
  for (const TensorSpec& spec : tensor_table(c)) count += spec.elements();
  return count;
}

}  // namespace stagecoach
