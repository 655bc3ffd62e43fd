// The smallest real vocabulary, for tests: every byte b is token b, "ab" is token 256, <|endoftext|> is 257.
#pragma once

#include <string>

#include "runtime/tokenizer.hpp"

namespace stagecoach {

inline std::string byte_vocab_json() {
  const auto utf8 = [](unsigned code) {  // code points below 0x800
    if (code < 0x80) return std::string(1, static_cast<char>(code));
    return std::string{static_cast<char>(0xc0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3f))};
  };
  std::string vocab = "{";
  unsigned next_substitute = 256;  // GPT-2's alphabet: bytes that do not print stand as U+0100 and up
  for (unsigned byte = 0; byte < 256; ++byte) {
    const bool prints = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    std::string name = utf8(prints ? byte : next_substitute++);
    if (name == "\"" || name == "\\") name.insert(0, "\\");
    vocab += "\"" + name + "\": " + std::to_string(byte) + ", ";
  }
  return vocab + R"("ab": 256, "<|endoftext|>": 257})";
}

inline Tokenizer byte_tokenizer() {
  return Tokenizer::from_text(byte_vocab_json(), "#version: 0.2\na b\n", "byte tokenizer");
}

}  // namespace stagecoach
