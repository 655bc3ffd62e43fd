// Tokenizer: ids equal to Hugging Face's (golden file), every byte string round-trips, broken files are
// named, no content is slow. The parts are tested on their own where a mistake would be hard to see from
// outside.

#include "runtime/bpe.hpp"
#include "runtime/pretokenizer.hpp"
#include "runtime/tokenizer.hpp"
#include "runtime/utf8.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <random>
#include <sstream>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "tests/rounds.hpp"

namespace {

using stagecoach::Merge;
using stagecoach::MergeTable;
using stagecoach::PieceCursor;
using stagecoach::PreTokenizer;
using stagecoach::StreamDecoder;
using stagecoach::to_valid_utf8;
using stagecoach::Tokenizer;
using stagecoach::TokenizerError;
using stagecoach::UseJit;

using Ids = std::vector<std::int32_t>;

const std::filesystem::path kTiny = std::filesystem::path(STAGECOACH_SOURCE_DIR) / "tests/data/tiny_tokenizer";
constexpr std::int32_t kTinySize = 600;
constexpr std::int32_t kTinyEnd = 599;

Tokenizer tiny(UseJit use_jit = UseJit::kWhenAvailable) {
  return Tokenizer::from_files(kTiny / "vocab.json", kTiny / "merges.txt", use_jit);
}

std::string from_hex(std::string_view hex) {
  std::string bytes;
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2) {
    bytes.push_back(static_cast<char>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16)));
  }
  return bytes;
}

// The two columns of a golden file.
std::vector<std::pair<std::string, std::string>> golden(const std::string& file) {
  std::ifstream in(kTiny / file);
  REQUIRE(in.good());
  std::vector<std::pair<std::string, std::string>> rows;
  for (std::string line; std::getline(in, line);) {
    const std::size_t tab = line.find('\t');
    REQUIRE(tab != std::string::npos);
    rows.emplace_back(from_hex(line.substr(0, tab)), line.substr(tab + 1));
  }
  return rows;
}

Ids ids_of(const std::string& text) {
  std::istringstream in(text);
  return {std::istream_iterator<std::int32_t>(in), std::istream_iterator<std::int32_t>()};
}

std::vector<std::string> pieces_of(const PreTokenizer& pre_tokenizer, std::string_view text) {
  PieceCursor cursor(pre_tokenizer);
  cursor.start(text);
  std::vector<std::string> pieces;
  for (auto piece = cursor.next(); !piece.empty(); piece = cursor.next()) pieces.emplace_back(piece);
  return pieces;
}

std::string repeated(std::string_view unit, std::size_t bytes) {
  std::string text;
  while (text.size() < bytes) text.append(unit);
  return text;
}

// GPT-2's byte alphabet, written down here a second time on purpose: a UTF-8 spelling for each byte.
std::string spelling(int byte) {
  int character = byte;
  int next = 0x100;
  for (int b = 0; b <= byte; ++b) {
    const bool visible = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || (b >= 174 && b <= 255);
    character = visible ? b : next++;
  }
  if (character < 0x80) return {static_cast<char>(character)};
  return {static_cast<char>(0xC0 | character >> 6), static_cast<char>(0x80 | (character & 0x3F))};
}

// A vocab.json of the 256 bytes as ids 0..255 and what `more` adds ("\"ab\": 256").
std::string vocab_with(const std::string& more, int without_byte = -1) {
  std::string json = "{";
  for (int byte = 0; byte < 256; ++byte) {
    if (byte == without_byte) continue;
    const std::string escape = byte == '"' || byte == '\\' ? "\\" : "";
    json += (json.size() > 1 ? ", \"" : "\"") + escape + spelling(byte) + "\": " + std::to_string(byte);
  }
  return json + (more.empty() ? "}" : ", " + more + "}");
}

std::string error_of(const std::string& vocab, const std::string& merges) {
  try {
    Tokenizer::from_text(vocab, merges, "demo");
  } catch (const TokenizerError& error) {
    return error.what();
  }
  return "";
}

bool contains(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("tokenizer: ids equal to Hugging Face's") {
  const auto rows = golden("encode.txt");
  REQUIRE(rows.size() > 2000);
  for (const UseJit use_jit : {UseJit::kWhenAvailable, UseJit::kNever}) {
    const Tokenizer tokenizer = tiny(use_jit);
    CHECK(tokenizer.vocab_size() == kTinySize);
    for (const auto& [text, ids] : rows) {
      CAPTURE(text);
      CHECK(tokenizer.encode(text) == ids_of(ids));
      CHECK(tokenizer.decode(ids_of(ids)) == text);
    }
  }
}

TEST_CASE("tokenizer: end of text is one id and separates") {
  const Tokenizer tokenizer = tiny();
  REQUIRE(tokenizer.end_of_text() == kTinyEnd);
  CHECK(tokenizer.encode("<|endoftext|>") == Ids{kTinyEnd});
  CHECK(tokenizer.encode("<|endoftext|><|endoftext|>") == Ids{kTinyEnd, kTinyEnd});
  CHECK(tokenizer.decode(Ids{kTinyEnd}) == "<|endoftext|>");
  // "  " before a word gives its last space to the word, but not across the separator.
  Ids expected = tokenizer.encode("a  ");
  expected.push_back(kTinyEnd);
  const Ids behind = tokenizer.encode("b");
  expected.insert(expected.end(), behind.begin(), behind.end());
  CHECK(tokenizer.encode("a  <|endoftext|>b") == expected);
  for (const std::string_view almost : {"<|endoftext|", "|endoftext|>", "<|endoftext |>", "<|ENDOFTEXT|>"}) {
    const Ids ids = tokenizer.encode(almost);
    CHECK(std::find(ids.begin(), ids.end(), kTinyEnd) == ids.end());
  }

  const Tokenizer without = Tokenizer::from_text(vocab_with(""), "#version: 0.2\n", "demo");
  CHECK_FALSE(without.end_of_text().has_value());
  CHECK(without.encode("<|endoftext|>").size() == 13);
}

TEST_CASE("tokenizer: every byte string round-trips") {
  const Tokenizer tokenizer = tiny();
  for (int byte = 0; byte < 256; ++byte) {
    const std::string text(1, static_cast<char>(byte));
    CHECK(tokenizer.decode(tokenizer.encode(text)) == text);
  }
  std::mt19937 draw(3);
  const std::array<std::string_view, 8> parts = {"\xE2\x82", "\xF0\x9F\x98",  "\xED\xA0\x80", " the",
                                                 "\xC3\xA9", "<|endoftext|>", "  ",           "\xFF"};
  for (int round = 0; round < stagecoach::test::rounds(3000); ++round) {
    std::string text;
    for (auto length = draw() % 20; length > 0; --length) {
      if (draw() % 2 == 0) {
        text.append(parts[draw() % parts.size()]);
      } else {
        text.push_back(static_cast<char>(draw() % 256));
      }
    }
    CAPTURE(text);
    CHECK(tokenizer.decode(tokenizer.encode(text)) == text);
  }
}

TEST_CASE("tokenizer: a run of invalid bytes is a word of its own") {
  const Tokenizer tokenizer =
      Tokenizer::from_text(vocab_with(R"("ÿÿ": 256, "Ġÿ": 257, "ÿa": 258)"), "ÿ ÿ\nĠ ÿ\nÿ a\n", "demo");
  CHECK(tokenizer.encode("\xFF\xFF") == Ids{256});
  CHECK(tokenizer.encode(" \xFF") == Ids{' ', 255});  // not joined with the space before
  CHECK(tokenizer.encode("\xFF"
                         "a") == Ids{255, 'a'});  // nor with the letter behind
}

TEST_CASE("tokenizer: vocabularies with holes and with tokens outside the byte alphabet") {
  const Tokenizer tokenizer = Tokenizer::from_text(
      vocab_with(R"("<|end|>": 300, "two words": 301, "": 302, "日": 303)"), "#version: 0.2", "demo");
  CHECK(tokenizer.vocab_size() == 304);
  CHECK(tokenizer.token_bytes(300) == "<|end|>");
  CHECK(tokenizer.token_bytes(301) == "two words");
  CHECK(tokenizer.token_bytes(302).empty());
  CHECK(tokenizer.token_bytes(303) == "日");
  CHECK(tokenizer.encode("two words").size() == 9);
  CHECK(tokenizer.encode("<|end|>").size() == 7);  // no merge leads there
  CHECK_THROWS_WITH_AS(tokenizer.decode(Ids{'a', 299}), doctest::Contains("token id 299 has no token"), TokenizerError);
  CHECK_THROWS_WITH_AS(tokenizer.decode(Ids{304}), doctest::Contains("token id 304 is not in the vocabulary"),
                       TokenizerError);
  CHECK_THROWS_AS(tokenizer.token_bytes(-1), TokenizerError);
}

TEST_CASE("tokenizer: a token that its merges do not reach is never produced") {
  // "abc" is in the vocabulary, but "b c" comes first and "a bc" is no merge.
  const Tokenizer tokenizer =
      Tokenizer::from_text(vocab_with(R"("ab": 256, "bc": 257, "abc": 258)"), "b c\na b\nab c\n", "demo");
  CHECK(tokenizer.encode("abc") == Ids{'a', 257});
  CHECK(tokenizer.encode("ab") == Ids{256});
}

TEST_CASE("tokenizer: forms of merges.txt") {
  const std::string vocab = vocab_with(R"("ab": 256)");
  for (const std::string_view merges :
       {"a b", "a b\n", "a b\r\n", "#version: 0.2\na b\n", "#version: 0.2\r\na b\r\n\r\n", "a b\n\n\n"}) {
    CHECK(Tokenizer::from_text(vocab, merges, "demo").encode("ab") == Ids{256});
  }
  // '#' begins ordinary merges, too.
  CHECK(Tokenizer::from_text(vocab_with(R"("##": 256)"), "#version: 0.2\n# #\n", "demo").encode("##") == Ids{256});
}

TEST_CASE("tokenizer: errors name file, place and reason") {
  struct Row {
    std::string vocab;
    std::string merges;
    std::vector<std::string_view> parts;
  };
  const std::string fine = vocab_with(R"("ab": 256)");
  const std::vector<Row> rows = {
      {"", "a b", {"demo: vocab.json: line 1,", "expected one object"}},
      {"{\"a\": 1,\n \"b\" 2}", "a b", {"demo: vocab.json: line 2,", "expected one object"}},
      {"{\"a\": 1", "a b", {"demo: vocab.json: line 1,", "expected one object"}},
      {"{\"\xFF\": 1}", "a b", {"demo: vocab.json: line 1, column 4", "expected one object"}},
      {"[1, 2]", "a b", {"demo: vocab.json", "is a list"}},
      {"7", "a b", {"demo: vocab.json", "is a number"}},
      {"{\"a\": {}}", "a b", {"token 'a'", "an object"}},
      {"{\"a\": \"1\"}", "a b", {"token 'a'", "a string"}},
      {"{\"a\": 1.5}", "a b", {"token 'a'", "a number", "whole number"}},
      {"{\"a\": null}", "a b", {"token 'a'", "null"}},
      {"{\"a\": true}", "a b", {"token 'a'", "a boolean"}},
      {"{\"a\": -1}", "a b", {"token 'a'", "-1"}},
      {"{\"a\": 4194304}", "a b", {"token 'a'", "4194304", "4194303"}},
      {"{\"a\": 99999999999999999999}", "a b", {"token 'a'", "a number", "whole number"}},
      {"{}", "a b", {"demo: vocab.json", "no token", "byte 0"}},
      {vocab_with("", 'q'), "a b", {"no token 'q'", "byte 113"}},
      {vocab_with("", ' '), "a b", {"no token 'Ġ'", "byte 32"}},
      {vocab_with(R"("q": 300)"), "a b", {"demo: vocab.json: line 1,", "duplicate key \"q\""}},
      {vocab_with(R"("qq": 113)"), "a b", {"'q' and 'qq'", "the id 113"}},
      {fine, "", {"demo: merges.txt", "empty"}},
      {fine, "a b\nab", {"demo: merges.txt:2", "'ab' is not a merge"}},
      {fine, "a b c\n", {"demo: merges.txt:1", "is not a merge"}},
      {fine, "a  b\n", {"demo: merges.txt:1", "is not a merge"}},
      {fine, " ab\n", {"demo: merges.txt:1", "is not a merge"}},
      {fine, "ab \n", {"demo: merges.txt:1", "is not a merge"}},
      {fine, "#version: 0.2\n\na b\n", {"demo: merges.txt:2", "blank line"}},
      {fine, "a b\nb c\n", {"demo: merges.txt:2", "'b c'", "'bc'", "demo: vocab.json"}},
      {fine, "#version: 0.2\nxy z\n", {"demo: merges.txt:2", "'xy'"}},
      {fine, "a zz\n", {"demo: merges.txt:1", "'zz'"}},
      {fine, "a b\na b\n", {"demo: merges.txt:2", "twice"}},
      // Messages hold no control characters and no endless lines, whatever they quote.
      {fine, "a\x1b[31m\x7f b\n", {"demo: merges.txt:1", "'a\\x1b[31m\\x7f b'"}},
      {fine, "a\x1b\n", {"demo: merges.txt:1", "'a\\x1b' is not a merge"}},
      {fine, std::string(100000, 'x') + " y\n", {"demo: merges.txt:1", "xxx...'"}},
      {fine, std::string(100000, 'x'), {"demo: merges.txt:1", "xxx...'"}},
      {"{\"a\\u001b\": -1}", "a b", {"token 'a\\x1b'", "-1"}},
      {vocab_with(R"("\u001bq": 113)"), "a b", {"'q' and '\\x1bq'", "the id 113"}},
  };
  for (const Row& row : rows) {
    const std::string error = error_of(row.vocab, row.merges);
    CAPTURE(error);
    CAPTURE(row.vocab.substr(0, 40));
    CAPTURE(row.merges.substr(0, 40));
    CHECK(error.size() < 1000);
    CHECK(std::none_of(error.begin(), error.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; }));
    for (const std::string_view part : row.parts) {
      CAPTURE(part);
      CHECK(contains(error, part));
    }
  }
  CHECK(error_of(fine, "a b").empty());
}

TEST_CASE("tokenizer: files that cannot be read") {
  const auto load = [](const std::filesystem::path& vocab, const std::filesystem::path& merges) {
    return Tokenizer::from_files(vocab, merges);
  };
  CHECK_THROWS_WITH_AS(load("/nowhere/vocab.json", kTiny / "merges.txt"),
                       doctest::Contains("/nowhere/vocab.json: cannot be opened (No such file or directory)"),
                       TokenizerError);
  CHECK_THROWS_WITH_AS(load(kTiny / "vocab.json", "/nowhere/merges.txt"), doctest::Contains("/nowhere/merges.txt: "),
                       TokenizerError);
  CHECK_THROWS_WITH_AS(load(kTiny, kTiny / "merges.txt"), doctest::Contains("is a directory"), TokenizerError);
  CHECK_THROWS_WITH_AS(load(kTiny / "merges.txt", kTiny / "vocab.json"), doctest::Contains("merges.txt: line 1,"),
                       TokenizerError);
}

TEST_CASE("tokenizer: moves, and const calls from several threads") {
  Tokenizer first = tiny();
  const std::string text = repeated("The stagecoach, 12 miles  later: don't stop, 馬車! ", 20000);
  const Ids expected = first.encode(text);
  const Tokenizer tokenizer = std::move(first);
  CHECK(tokenizer.encode(text) == expected);
  std::array<Ids, 4> results;
  std::vector<std::thread> threads;
  for (Ids& result : results) {
    threads.emplace_back([&] { result = tokenizer.encode(text); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const Ids& result : results) CHECK(result == expected);
}

TEST_CASE("tokenizer: a long run of anything is neither slow nor deep") {
  // A quadratic step would take minutes here; recursion or a fixed stack would fail.
  constexpr std::size_t kLong = stagecoach::test::rounds(250'000);
  for (const UseJit use_jit : {UseJit::kWhenAvailable, UseJit::kNever}) {
    const Tokenizer tokenizer = tiny(use_jit);
    for (const std::string_view unit : {"a", " ", "\n", "the", "é", "😀", "1", "'", "!", "\u3000", "\xFF", "\xE2\x82",
                                        "a\xFF", "<|endoftext|", "<", "e\u0301", "<|endoftext|>"}) {
      CAPTURE(unit);
      const std::string text = repeated(unit, kLong);
      CHECK(tokenizer.decode(tokenizer.encode(text)) == text);
      CHECK(tokenizer.decode(tokenizer.encode(text + "x")) == text + "x");
    }
  }
}

TEST_CASE("pre-tokenizer: pieces of the published pattern") {
  using Pieces = std::vector<std::string>;
  const std::vector<std::pair<std::string_view, Pieces>> rows = {
      {"", {}},
      {"Hello world", {"Hello", " world"}},
      {"a  b", {"a", " ", " b"}},
      {"a   ", {"a", "   "}},
      {"a \n b", {"a", " \n", " b"}},
      {"a\nb", {"a", "\n", "b"}},
      {"a\n\nb", {"a", "\n", "\n", "b"}},
      {"we're 'SO' it'll''s", {"we", "'re", " '", "SO", "'", " it", "'ll", "''", "s"}},
      {" 's", {" '", "s"}},  // the space is taken first, so this is no contraction
      {"'DX'dx", {"'", "DX", "'d", "x"}},
      {"abc123!?def", {"abc", "123", "!?", "def"}},
      {"½x²٣", {"½", "x", "²٣"}},
      {"aéb", {"aéb"}},
      {" naïve", {" naïve"}},
      {"e\u0301a", {"e", "\u0301", "a"}},              // a combining mark is neither letter nor space
      {"a\u180Eb", {"a", "\u180E", "b"}},              // no space since Unicode 6.3 ...
      {"a\u180E\u180Eb", {"a", "\u180E\u180E", "b"}},  // ... so two of them stay together
      {"a\u00A0\u00A0b", {"a", "\u00A0", "\u00A0", "b"}},
      {"a\u0085\u2028b", {"a", "\u0085", "\u2028", "b"}},
      {"a\u200Bb", {"a", "\u200B", "b"}},
      {"a\x1C\x1C"
       "b",
       {"a", "\x1C\x1C", "b"}},  // a space for Python's str.isspace, not for the pattern
      {" \u3000 x", {" \u3000", " x"}},
      {"馬車 2台", {"馬車", " 2", "台"}},
      {std::string_view("a\0b", 3), {"a", std::string(1, '\0'), "b"}},
  };
  for (const UseJit use_jit : {UseJit::kWhenAvailable, UseJit::kNever}) {
    const PreTokenizer pre_tokenizer(use_jit);
    if (use_jit == UseJit::kNever) CHECK_FALSE(pre_tokenizer.uses_jit());
    for (const auto& [text, pieces] : rows) {
      CAPTURE(text);
      CHECK(pieces_of(pre_tokenizer, text) == pieces);
    }
  }
}

TEST_CASE("bpe: equal to searching the best pair each time, for short and long words") {
  // Random tables over 4 symbols, with ids and ranks in no helpful order: the order of merges decides
  // everything.
  std::mt19937 draw(11);
  for (int round = 0; round < 300; ++round) {
    std::map<std::pair<std::int32_t, std::int32_t>, Merge> naive;
    MergeTable table(40);
    std::vector<std::uint32_t> ranks(40);
    for (std::uint32_t i = 0; i < 40; ++i) ranks[i] = i;
    std::shuffle(ranks.begin(), ranks.end(), draw);
    for (std::int32_t i = 0; i < 40; ++i) {
      const auto limit = static_cast<std::uint32_t>(std::min(4 + i, 12));
      const auto left = static_cast<std::int32_t>(draw() % limit);
      const auto right = static_cast<std::int32_t>(draw() % limit);
      const Merge merge = {ranks[static_cast<std::size_t>(i)], 4 + i};
      CHECK(table.insert(left, right, merge) == naive.try_emplace({left, right}, merge).second);
    }
    Ids word(draw() % 130);
    for (auto& id : word) id = static_cast<std::int32_t>(draw() % 4);

    Ids expected = word;
    while (true) {
      std::size_t best = expected.size();
      Merge best_merge = {~0U, 0};
      for (std::size_t i = 0; i + 1 < expected.size(); ++i) {
        const auto found = naive.find({expected[i], expected[i + 1]});
        if (found == naive.end() || found->second.rank >= best_merge.rank) continue;
        best = i;
        best_merge = found->second;
      }
      if (best == expected.size()) break;
      expected[best] = best_merge.id;
      expected.erase(expected.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    }
    stagecoach::BpeWorkspace workspace;
    merge_pairs(table, word, workspace);
    CHECK(word == expected);
  }
}

TEST_CASE("utf8: replacement as Python's, at once and in slices") {
  std::mt19937 draw(5);
  for (const auto& [bytes, hex] : golden("decode.txt")) {
    CAPTURE(hex);
    const std::string expected = from_hex(hex);
    CHECK(to_valid_utf8(bytes) == expected);
    for (const std::size_t largest : {1U, 2U, 5U}) {
      StreamDecoder decoder;
      std::string streamed;
      for (std::size_t at = 0; at < bytes.size();) {
        const std::size_t length = largest == 1 ? 1 : draw() % (largest + 1);
        const std::string part = decoder.push(std::string_view(bytes).substr(at, length));
        CHECK(to_valid_utf8(part) == part);  // never half a character
        streamed += part;
        at += std::min(length, bytes.size() - at);
      }
      streamed += decoder.finish();
      CHECK(streamed == expected);
      CHECK(decoder.finish().empty());
    }
  }
}

TEST_CASE("utf8: a character comes out with its last byte, and no later") {
  StreamDecoder decoder;
  CHECK(decoder.push("a\xF0\x9F") == "a");
  CHECK(decoder.push("\x98") == "");
  CHECK(decoder.push("\x80"
                     "b") == "😀b");
  CHECK(decoder.push("\xE2\x82") == "");
  CHECK(decoder.push("x") == "\uFFFDx");  // no byte can complete it any more
  CHECK(decoder.push("\xC3") == "");
  CHECK(decoder.finish() == "\uFFFD");
  CHECK(decoder.push("ok") == "ok");
}
