#include "runtime/tokenizer.hpp"

#include <array>
#include <cerrno>
#include <cstddef>
#include <fstream>
#include <system_error>
#include <utility>

namespace stagecoach {
namespace {

std::string read_file(const std::filesystem::path& path) {
  const auto refuse = [&](const std::string& reason) {
    throw TokenizerError(path.string() + ": " + reason +
                         "; a GPT-2 tokenizer is a vocab.json and a merges.txt, as in the model's download");
  };
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) refuse("is a directory, expected a file");
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file) refuse("cannot be opened (" + std::generic_category().message(errno) + ")");
  std::string text;
  std::array<char, 65536> part;
  while (file.read(part.data(), part.size()) || file.gcount() > 0) {
    text.append(part.data(), static_cast<std::size_t>(file.gcount()));
  }
  if (file.bad()) refuse("cannot be read (" + std::generic_category().message(errno) + ")");
  return text;
}

// Bytes up to where valid UTF-8 goes on: the length of the run of invalid bytes at the start of `bytes`.
std::size_t invalid_prefix(std::string_view bytes) {
  std::size_t length = 0;
  while (length < bytes.size()) {
    const Utf8Step step = utf8_step(bytes.substr(length));
    if (step.state == Utf8State::kValid) break;
    length += step.length;
  }
  return length;
}

}  // namespace

// One encode call: the scratch memory that makes a Tokenizer usable from several threads, and the ids so far.
struct Tokenizer::Encoder {
  const Vocabulary& vocabulary;
  const WordTable& words;
  PieceCursor cursor;
  BpeWorkspace workspace;
  std::vector<std::int32_t> word;
  std::vector<std::int32_t> ids;

  void add_merged(std::string_view bytes) {
    word.clear();
    for (const char byte : bytes) word.push_back(vocabulary.id_of_byte(static_cast<unsigned char>(byte)));
    merge_pairs(vocabulary.merges(), word, workspace);
    ids.insert(ids.end(), word.begin(), word.end());
  }

  void add_word(std::string_view bytes) {
    const std::int32_t id = words.find(bytes);
    if (id == WordTable::kAbsent) {
      add_merged(bytes);
    } else {
      ids.push_back(id);
    }
  }

  void add_text(std::string_view bytes) {
    while (!bytes.empty()) {
      const std::size_t valid = valid_utf8_prefix(bytes);
      cursor.start(bytes.substr(0, valid));
      for (std::string_view piece = cursor.next(); !piece.empty(); piece = cursor.next()) add_word(piece);
      bytes.remove_prefix(valid);
      const std::size_t invalid = invalid_prefix(bytes);
      if (invalid > 0) add_word(bytes.substr(0, invalid));
      bytes.remove_prefix(invalid);
    }
  }
};

Tokenizer::Tokenizer(Vocabulary vocabulary, UseJit use_jit)
    : vocabulary_(std::move(vocabulary)), pre_tokenizer_(use_jit), words_(vocabulary_.token_count()) {
  // A token's bytes are encoded as that token only if merging leads there; asking the merges is the safe way
  // to know.
  Encoder encoder{vocabulary_, words_, PieceCursor(pre_tokenizer_), {}, {}, {}};
  for (std::int32_t id = 0; id < vocab_size(); ++id) {
    const std::optional<std::string_view> bytes = vocabulary_.bytes_of(id);
    if (!bytes || bytes->empty()) continue;
    encoder.ids.clear();
    encoder.add_merged(*bytes);
    if (encoder.ids.size() == 1 && encoder.ids.front() == id) words_.insert(*bytes, id);
  }
}

Tokenizer Tokenizer::from_files(const std::filesystem::path& vocab_json, const std::filesystem::path& merges_txt,
                                UseJit use_jit) {
  const std::string vocab = read_file(vocab_json);
  const std::string merges = read_file(merges_txt);
  return {Vocabulary({vocab, vocab_json.string()}, {merges, merges_txt.string()}), use_jit};
}

Tokenizer Tokenizer::from_text(std::string_view vocab_json, std::string_view merges_txt, const std::string& name,
                               UseJit use_jit) {
  return from_text({vocab_json, name + ": vocab.json"}, {merges_txt, name + ": merges.txt"}, use_jit);
}

Tokenizer Tokenizer::from_text(const NamedText& vocab_json, const NamedText& merges_txt, UseJit use_jit) {
  return {Vocabulary(vocab_json, merges_txt), use_jit};
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view bytes) const {
  Encoder encoder{vocabulary_, words_, PieceCursor(pre_tokenizer_), {}, {}, {}};
  encoder.ids.reserve(bytes.size() / 4);  // about what English needs
  const std::optional<std::int32_t> special = end_of_text();
  while (special) {
    const std::size_t at = bytes.find(kEndOfText);
    if (at == std::string_view::npos) break;
    encoder.add_text(bytes.substr(0, at));
    encoder.ids.push_back(*special);
    bytes.remove_prefix(at + kEndOfText.size());
  }
  encoder.add_text(bytes);
  return std::move(encoder.ids);
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids) const {
  std::string bytes;
  for (const std::int32_t id : ids) bytes.append(token_bytes(id));
  return bytes;
}

std::string_view Tokenizer::token_bytes(std::int32_t id) const {
  if (const auto bytes = vocabulary_.bytes_of(id)) return *bytes;
  const bool hole = id >= 0 && id < vocab_size();
  throw TokenizerError("token id " + std::to_string(id) +
                       (hole ? " has no token: the vocabulary leaves this id out" : " is not in the vocabulary") +
                       "; ids go from 0 to " + std::to_string(vocab_size() - 1));
}

}  // namespace stagecoach
