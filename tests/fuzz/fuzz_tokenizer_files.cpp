// libFuzzer: whatever vocab.json and merges.txt, or tokenizer.json, hold, loading gives a Tokenizer that round-trips,
// or TokenizerError of one line. The first byte of the input chooses what the rest is: a vocab.json, a merges.txt for
// the vocabulary of the tests, members for a vocabulary that has all bytes, then a NUL, then a merges.txt, or a
// tokenizer.json.

#include "runtime/tokenizer.hpp"

#include <string>
#include <string_view>

#include "runtime/tokenizer_json.hpp"
#include "tests/fuzz/fuzz.hpp"

namespace {

using stagecoach::Tokenizer;

std::string read(const char* file) {
  std::string text =
      stagecoach::fuzz::contents_of_file(std::string(STAGECOACH_SOURCE_DIR "/tests/data/tiny_tokenizer/") + file);
  if (text.empty()) std::abort();
  return text;
}

Tokenizer open(std::string_view vocab, std::string_view merges) {
  return Tokenizer::from_text(vocab, merges, "fuzz", stagecoach::UseJit::kNever);
}

Tokenizer open_json(std::string_view text) {
  const stagecoach::TokenizerTexts texts = stagecoach::texts_of_tokenizer_json(text, "fuzz");
  return open(texts.vocab_json, texts.merges_txt);
}

template <class Open>
void check(const Open& open_it) {
  try {
    const Tokenizer tokenizer = open_it();
    constexpr std::string_view kText = "The stages aren't\n  full: 12 é <|endoftext|> \xFF\xFF aaaa abab";
    if (tokenizer.decode(tokenizer.encode(kText)) != kText) std::abort();
  } catch (const stagecoach::TokenizerError& error) {
    stagecoach::fuzz::require_plain(error.what());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::string vocab = read("vocab.json");
  static const std::string merges = read("merges.txt");
  if (size == 0) return 0;
  const std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 4) {
    case 0:
      check([&] { return open(rest, merges); });
      break;
    case 1:
      check([&] { return open(vocab, rest); });
      break;
    case 2:
      check([&] { return open_json(rest); });
      break;
    default: {
      const std::string_view members = rest.substr(0, rest.find('\0'));
      const std::string_view lines = rest.substr(members.size() < rest.size() ? members.size() + 1 : rest.size());
      std::string grown = vocab.substr(0, vocab.rfind('}'));
      grown.append(", ").append(members).append("}");
      check([&] { return open(grown, lines); });
    }
  }
  return 0;
}
