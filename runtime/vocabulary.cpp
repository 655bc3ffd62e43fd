#include "runtime/vocabulary.hpp"

#include "partition/wording.hpp"
#include "runtime/tokenizer_error.hpp"

#include <algorithm>
#include <unordered_map>
#include <utility>

namespace stagecoach {
namespace {

// GPT-2's byte alphabet: a byte that is a visible Latin-1 character is that character; the others, in order,
// are U+0100, U+0101, ... All characters are below U+0144, so they take at most two bytes of UTF-8.
struct ByteAlphabet {
  std::array<std::int16_t, 0x144> byte_of_character{};  // -1: not in the alphabet
  std::array<std::uint16_t, 256> character_of_byte{};

  constexpr ByteAlphabet() {
    for (auto& byte : byte_of_character) byte = -1;
    std::uint16_t next = 0x100;
    for (std::uint16_t byte = 0; byte < 256; ++byte) {
      const bool visible = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
      const std::uint16_t character = visible ? byte : next++;
      character_of_byte[byte] = character;
      byte_of_character[character] = static_cast<std::int16_t>(byte);
    }
  }
};
constexpr ByteAlphabet kAlphabet;

std::string spelling_of_byte(unsigned char byte) {
  const std::uint16_t character = kAlphabet.character_of_byte[byte];
  if (character < 0x80) return {static_cast<char>(character)};
  return {static_cast<char>(0xC0 | character >> 6), static_cast<char>(0x80 | (character & 0x3F))};
}

// The bytes that `token` (valid UTF-8) spells, or its own bytes when it is not written in the alphabet.
std::string bytes_of_spelling(std::string_view token) {
  std::string bytes;
  for (std::size_t i = 0; i < token.size(); ++i) {
    unsigned character = static_cast<unsigned char>(token[i]);
    if (character >= 0x80) {
      if (character >= 0xC6) return std::string(token);  // past U+0144
      character = (character & 0x1F) << 6 | (static_cast<unsigned char>(token[++i]) & 0x3F);
    }
    if (character >= kAlphabet.byte_of_character.size()) return std::string(token);
    const std::int16_t byte = kAlphabet.byte_of_character[character];
    if (byte < 0) return std::string(token);
    bytes.push_back(static_cast<char>(byte));
  }
  return bytes;
}

using IdOfToken = std::unordered_map<std::string_view, std::int32_t>;

IdOfToken index_tokens(const std::vector<VocabEntry>& entries, const std::string& name) {
  IdOfToken ids;
  ids.reserve(entries.size());
  for (const VocabEntry& entry : entries) {
    const auto [other, is_new] = ids.emplace(entry.token, entry.id);
    if (is_new) continue;
    throw TokenizerError(name + ": the token '" + shown(entry.token) + "' is there twice, with ids " +
                         std::to_string(other->second) + " and " + std::to_string(entry.id) +
                         "; every token needs one id");
  }
  return ids;
}

std::array<std::int32_t, 256> find_bytes(const IdOfToken& ids, const std::string& name) {
  std::array<std::int32_t, 256> byte_ids{};
  for (unsigned byte = 0; byte < 256; ++byte) {
    const std::string spelling = spelling_of_byte(static_cast<unsigned char>(byte));
    const auto found = ids.find(spelling);
    if (found == ids.end()) {
      throw TokenizerError(name + ": no token '" + spelling + "' for the byte " + std::to_string(byte) +
                           "; a byte-level BPE vocabulary as GPT-2's has one for each of the 256 bytes");
    }
    byte_ids[byte] = found->second;
  }
  return byte_ids;
}

struct MergeLine {
  std::string_view left;
  std::string_view right;
  std::size_t number;  // from 1
};

std::vector<MergeLine> split_merges(const NamedText& merges_txt) {
  if (merges_txt.text.empty()) {
    throw TokenizerError(merges_txt.name + ": is empty; a vocabulary without merges still has a '#version' line here");
  }
  std::vector<MergeLine> merges;
  std::string_view rest = merges_txt.text;
  std::size_t blank = 0;  // number of the first blank line: only more blank lines may follow
  for (std::size_t number = 1; !rest.empty(); ++number) {
    std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(line.size() + 1, rest.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.starts_with("#version")) continue;
    if (line.empty()) {
      if (blank == 0) blank = number;
      continue;
    }
    if (blank != 0) {
      throw TokenizerError(merges_txt.name + ":" + std::to_string(blank) + ": blank line between merges");
    }
    const std::size_t space = line.find(' ');
    if (space == 0 || space == std::string_view::npos || space + 1 == line.size() ||
        line.find(' ', space + 1) != std::string_view::npos) {
      throw TokenizerError(merges_txt.name + ":" + std::to_string(number) + ": '" + shown(line) +
                           "' is not a merge, expected two tokens with one space between them");
    }
    merges.push_back({line.substr(0, space), line.substr(space + 1), number});
  }
  return merges;
}

MergeTable read_merges(const NamedText& merges_txt, const IdOfToken& ids, const std::string& vocab_name) {
  const std::vector<MergeLine> lines = split_merges(merges_txt);
  MergeTable table(lines.size());
  const auto at_line = [&](const MergeLine& line) {
    return merges_txt.name + ":" + std::to_string(line.number) + ": the merge '" + shown(line.left) + " " +
           shown(line.right) + "' ";
  };
  const auto id_of = [&](const MergeLine& line, const std::string& token) {
    const auto found = ids.find(token);
    if (found != ids.end()) return found->second;
    throw TokenizerError(at_line(line) + "needs the token '" + shown(token) + "', which " + vocab_name +
                         " lacks; do both files belong to the same model?");
  };
  std::uint32_t rank = 0;
  for (const MergeLine& line : lines) {
    const std::string left(line.left);
    const std::string right(line.right);
    const std::int32_t left_id = id_of(line, left);
    const std::int32_t right_id = id_of(line, right);
    if (!table.insert(left_id, right_id, {rank++, id_of(line, left + right)})) {
      throw TokenizerError(at_line(line) + "is there twice; a merge has one place in the order");
    }
  }
  return table;
}

}  // namespace

Vocabulary::Vocabulary(const NamedText& vocab_json, const NamedText& merges_txt) {
  const std::vector<VocabEntry> entries = parse_vocab_json(vocab_json.text, vocab_json.name);
  const IdOfToken ids = index_tokens(entries, vocab_json.name);
  byte_ids_ = find_bytes(ids, vocab_json.name);
  read_tokens(entries, vocab_json.name);
  merges_ = read_merges(merges_txt, ids, vocab_json.name);
  if (const auto found = ids.find(kEndOfText); found != ids.end()) end_of_text_ = found->second;
}

void Vocabulary::read_tokens(const std::vector<VocabEntry>& entries, const std::string& name) {
  const auto by_id = [](const VocabEntry& a, const VocabEntry& b) { return a.id < b.id; };
  tokens_.resize(static_cast<std::size_t>(std::max_element(entries.begin(), entries.end(), by_id)->id) + 1);
  token_count_ = entries.size();
  for (const VocabEntry& entry : entries) {
    Token& token = tokens_[static_cast<std::size_t>(entry.id)];
    const std::string bytes = bytes_of_spelling(entry.token);
    if (token.length != kHole) {
      const auto same_id = [&](const VocabEntry& other) { return other.id == entry.id; };
      throw TokenizerError(name + ": the tokens '" +
                           shown(std::find_if(entries.begin(), entries.end(), same_id)->token) + "' and '" +
                           shown(entry.token) + "' both have the id " + std::to_string(entry.id));
    }
    if (bytes.size() >= kHole) {
      throw TokenizerError(name + ": token " + std::to_string(entry.id) + " is longer than 4 GiB");
    }
    token = {bytes_.size(), static_cast<std::uint32_t>(bytes.size())};
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
  }
}

std::optional<std::string_view> Vocabulary::bytes_of(std::int32_t id) const {
  if (id < 0 || id >= size()) return std::nullopt;
  const Token& token = tokens_[static_cast<std::size_t>(id)];
  if (token.length == kHole) return std::nullopt;
  return std::string_view(bytes_.data() + token.offset, token.length);
}

}  // namespace stagecoach
