#pragma once

// Reads vocab.json, a flat JSON object token -> id, into entries in file order. A repeated token is an error here;
// whether ids and tokens make sense together is judged by the vocabulary.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace stagecoach {

struct VocabEntry {
  std::string token;  // as written in the file: UTF-8, bytes spelled in GPT-2's byte alphabet
  std::int32_t id;    // 0 <= id <= kMaxTokenId
};

// Far above any vocabulary, and low enough that a table with one entry per id is harmless.
constexpr std::int32_t kMaxTokenId = (1 << 22) - 1;

// `name` is how errors call the text. Throws TokenizerError.
std::vector<VocabEntry> parse_vocab_json(std::string_view text, const std::string& name);

}  // namespace stagecoach
