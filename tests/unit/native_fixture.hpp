// Native model files of random and tiny models, and changed versions of them.
#pragma once

#include <fmt/format.h>

#include <fstream>
#include <iterator>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "kernels/convert.hpp"
#include "runtime/native_model.hpp"
#include "tests/unit/all_weights.hpp"
#include "tests/unit/safetensors_builder.hpp"

namespace stagecoach::test {

inline std::mt19937& random_source() {
  static std::mt19937 random{std::random_device{}()};
  return random;
}
inline std::int32_t pick(std::int32_t low, std::int32_t high) {
  return std::uniform_int_distribution<std::int32_t>(low, high)(random_source());
}

inline std::string bytes_of_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline std::vector<std::byte> bytes_of(const WeightSource& source, const TensorSpec& spec) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(spec.elements() * size_of(source.dtype_of(spec))));
  source.read_rows(spec, 0, spec.rows, bytes);
  return bytes;
}

inline TokenizerTexts tiny_texts() {
  const std::string folder = STAGECOACH_SOURCE_DIR "/tests/data/tiny_tokenizer/";
  return {bytes_of_file(folder + "vocab.json"), bytes_of_file(folder + "merges.txt")};
}

inline constexpr NativeOptions kRows{std::nullopt, NativeLayout::kRows};
// One of each kind of file.
inline constexpr NativeOptions kKinds[] = {
    kRows, {std::nullopt, NativeLayout::kPanels}, {DType::kInt8, NativeLayout::kPanels}};

inline void convert(const Model& model, const std::string& file, const NativeOptions& options = {},
                    const std::optional<TokenizerTexts>& texts = std::nullopt) {
  write_native_model(model, texts, options, file, {});
}

inline std::vector<std::byte> elements_as(const std::vector<std::byte>& from, DType from_dtype, DType to,
                                          std::int64_t count) {
  std::vector<std::byte> result(static_cast<std::size_t>(count * size_of(to)));
  for (std::int64_t i = 0; i < count; ++i)
    store_element(result.data(), to, i, load_element(from.data(), from_dtype, i));
  return result;
}

inline std::string random_synthetic(const char* dtype) {
  const std::int32_t heads = pick(1, 4);
  return fmt::format(
      "synthetic:gpt2,n_layer={},n_head={},n_embd={},n_inner={},n_positions={},vocab_size={},seed={},dtype={},"
      "tie_word_embeddings={},activation_function={},layer_norm_epsilon={},scale_attn_by_inverse_layer_idx={},"
      "eos_token_id={}",
      pick(1, 3), heads, heads * pick(1, 9), pick(1, 50), pick(1, 40), pick(1, 90), pick(0, 1000), dtype,
      pick(0, 1) == 1, pick(0, 1) == 1 ? "silu" : "gelu", pick(0, 1) == 1 ? "1e-6" : "0.00123", pick(0, 1) == 1,
      pick(-1, 5));
}

inline bool same(const ModelConfig& a, const ModelConfig& b) {
  return a.n_layer == b.n_layer && a.n_head == b.n_head && a.n_embd == b.n_embd && a.n_inner == b.n_inner &&
         a.n_positions == b.n_positions && a.vocab_size == b.vocab_size && a.activation == b.activation &&
         a.layer_norm_epsilon == b.layer_norm_epsilon && a.scale_attn_weights == b.scale_attn_weights &&
         a.scale_attn_by_inverse_layer_idx == b.scale_attn_by_inverse_layer_idx &&
         a.reorder_and_upcast_attn == b.reorder_and_upcast_attn && a.tie_word_embeddings == b.tie_word_embeddings &&
         a.eos_token_id == b.eos_token_id;
}

// A native file of the tiny model, and changed versions of it.
struct NativeFile : TemporaryDirectory {
  explicit NativeFile(const NativeOptions& options = {}, const std::optional<TokenizerTexts>& texts = std::nullopt) {
    std::string model = "synthetic:gpt2,n_layer=1,n_head=2,n_embd=4,n_inner=66,n_positions=5,seed=4,vocab_size=";
    convert(open_model(model + (texts ? "700" : "7")), path(), options, texts);
    whole = bytes_of_file(path());
  }
  std::string path() const { return name() + "/m.h5"; }
  std::string error() const {
    return message_of<WeightError>([&] { weights_of(open_model(path())); });
  }
  std::string error_of(const std::string& bytes) const {
    write("m.h5", bytes);
    return error();
  }
  std::string whole;
};

}  // namespace stagecoach::test
