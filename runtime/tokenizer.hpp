#pragma once

// GPT-2's byte-level BPE: text to token ids and back. The ids are those of Hugging Face's fast GPT-2
// tokenizer (ByteLevel without prefix space, then BPE) for every valid UTF-8 string of characters that
// Unicode 14 assigns; where Hugging Face's slow tokenizer differs, the fast one is followed. "<|endoftext|>"
// in the input is one id when the vocabulary has that token, and separates the texts before and after it.
//
// Any byte string can be encoded, and decode(encode(bytes)) == bytes. A longest run of bytes that are not
// valid UTF-8 is one word of its own, and the texts before and after it are encoded as if they stood alone.
//
// A Tokenizer is immutable: const calls may run in any number of threads. It knows nothing of models or
// requests. The views that token_bytes returns live as long as the Tokenizer.

#include "runtime/pretokenizer.hpp"
#include "runtime/tokenizer_error.hpp"
#include "runtime/utf8.hpp"
#include "runtime/vocabulary.hpp"
#include "runtime/word_table.hpp"

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace stagecoach {

// A tokenizer as its two files.
struct TokenizerTexts {
  std::string vocab_json;
  std::string merges_txt;
};

class Tokenizer {
 public:
  // The files of a GPT-2 model directory. Throws TokenizerError; see Vocabulary for what is refused.
  static Tokenizer from_files(const std::filesystem::path& vocab_json, const std::filesystem::path& merges_txt,
                              UseJit use_jit = UseJit::kWhenAvailable);
  // The same from memory; errors call the texts "<name>: vocab.json" and "<name>: merges.txt".
  static Tokenizer from_text(std::string_view vocab_json, std::string_view merges_txt, const std::string& name,
                             UseJit use_jit = UseJit::kWhenAvailable);
  // The same with names of the caller's choice.
  static Tokenizer from_text(const NamedText& vocab_json, const NamedText& merges_txt,
                             UseJit use_jit = UseJit::kWhenAvailable);

  // Takes time in proportion to the text (times the logarithm of its longest word), whatever it contains.
  // Throws std::length_error for a single word of 4 GiB or more.
  std::vector<std::int32_t> encode(std::string_view bytes) const;
  // The raw bytes, which need not be valid UTF-8. Throws TokenizerError for an id that has no token.
  std::string decode(std::span<const std::int32_t> ids) const;
  std::string_view token_bytes(std::int32_t id) const;

  std::int32_t vocab_size() const { return vocabulary_.size(); }  // highest id + 1; ids between may have no token
  std::optional<std::int32_t> end_of_text() const { return vocabulary_.end_of_text(); }

 private:
  struct Encoder;
  Tokenizer(Vocabulary vocabulary, UseJit use_jit);

  Vocabulary vocabulary_;
  PreTokenizer pre_tokenizer_;
  WordTable words_;  // words that are encoded as one token: most words of most text, and they skip the merging
};

}  // namespace stagecoach
