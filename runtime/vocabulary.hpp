#pragma once

// What GPT-2's two files say, checked: the bytes of every token id, the merge table, and the ids of the 256
// single bytes. Immutable. Both files spell bytes as printable characters (GPT-2's byte alphabet: space is
// U+0120 and so on); that spelling ends here. A token with a character outside the alphabet (some added
// tokens) stands for its own UTF-8 text and is never the result of encoding.

#include "runtime/bpe.hpp"
#include "runtime/vocab_json.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace stagecoach {

constexpr std::string_view kEndOfText = "<|endoftext|>";

// A text and what errors call it.
struct NamedText {
  std::string_view text;
  std::string name;
};

class Vocabulary {
 public:
  // Throws TokenizerError for: no or malformed JSON; a token or an id twice; an id out of range; one of the
  // 256 bytes without a token; in merges.txt a line that is not two tokens, a part or a result that the
  // vocabulary lacks, the same merge twice, an empty text. Lines that start "#version" are skipped, CRLF and
  // blank lines at the end are fine.
  Vocabulary(const NamedText& vocab_json, const NamedText& merges_txt);

  std::int32_t size() const { return static_cast<std::int32_t>(tokens_.size()); }  // highest id + 1
  std::size_t token_count() const { return token_count_; }                         // without the ids that are left out
  // The bytes of a token; nothing for an id that has none.
  std::optional<std::string_view> bytes_of(std::int32_t id) const;
  std::int32_t id_of_byte(unsigned char byte) const { return byte_ids_[byte]; }
  const MergeTable& merges() const { return merges_; }
  std::optional<std::int32_t> end_of_text() const { return end_of_text_; }

 private:
  struct Token {
    std::size_t offset = 0;  // into bytes_, which keeps the views valid when a Vocabulary moves
    std::uint32_t length = kHole;
  };
  static constexpr std::uint32_t kHole = ~std::uint32_t{0};

  void read_tokens(const std::vector<VocabEntry>& entries, const std::string& name);

  std::vector<Token> tokens_;  // by id
  std::size_t token_count_ = 0;
  std::vector<char> bytes_;
  std::array<std::int32_t, 256> byte_ids_{};
  MergeTable merges_;
  std::optional<std::int32_t> end_of_text_;
};

}  // namespace stagecoach
