#include "runtime/model_identity.hpp"

#include <fmt/format.h>

#include <set>
#include <vector>

#include "runtime/checksum.hpp"
#include "runtime/results.hpp"
#include "runtime/wire.hpp"

namespace stagecoach {
namespace {

void put_config(wire::Writer& out, const ModelConfig& c) {
  for (const std::int32_t n : {c.n_layer, c.n_head, c.n_embd, c.n_inner, c.n_positions, c.vocab_size, c.eos_token_id,
                               static_cast<std::int32_t>(c.activation)}) {
    out.put(n);
  }
  out.put(static_cast<double>(c.layer_norm_epsilon));
  for (const bool flag : {c.scale_attn_weights, c.scale_attn_by_inverse_layer_idx, c.tie_word_embeddings}) {
    out.put(static_cast<std::uint8_t>(flag));
  }
}

void put_rows(Xxh3& hash, const WeightSource& weights, const TensorSpec& tensor) {
  std::vector<std::byte> row(static_cast<std::size_t>(tensor.cols * size_of(weights.dtype_of(tensor))));
  for (const std::int64_t r : std::set<std::int64_t>{0, tensor.rows / 2, tensor.rows - 1}) {
    weights.read_rows(tensor, r, 1, row);
    hash.update(row);
  }
}

std::string identity_of(const Model& model, bool with_vocabulary) {
  Xxh3 hash;
  wire::Writer head;
  put_config(head, model.config);
  if (with_vocabulary && model.tokenizer) {
    for (std::int32_t id = 0; id < model.tokenizer->vocab_size(); ++id) {
      head.put(std::string_view(token_text(*model.tokenizer, id)));
    }
  }
  hash.update(head.bytes());
  for (const TensorSpec& tensor : tensor_table(model.config)) {
    if (const std::optional<std::uint64_t> checksum = model.weights->checksum_of(tensor)) {
      hash.update(std::as_bytes(std::span(&*checksum, 1)));
    } else {
      put_rows(hash, *model.weights, tensor);
    }
  }
  return fmt::format("{:016x}", hash.value());
}

}  // namespace

std::string model_identity(const Model& model) {
  return identity_of(model, true);
}

std::string weights_identity(const Model& model) {
  return identity_of(model, false);
}

}  // namespace stagecoach
