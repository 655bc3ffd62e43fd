// libFuzzer: whatever vocab.json and merges.txt hold, loading gives a Tokenizer that round-trips, or
// TokenizerError of one line. The first byte of the input chooses what the rest is: a vocab.json, a merges.txt for the
// vocabulary of the tests, or members for a vocabulary that has all bytes, then a NUL, then a merges.txt.

#include "runtime/tokenizer.hpp"

#include <string>
#include <string_view>

#include "tests/fuzz/fuzz.hpp"

namespace {

using stagecoach::Tokenizer;

std::string read(const char* file) {
  std::string text =
      stagecoach::fuzz::contents_of_file(std::string(STAGECOACH_SOURCE_DIR "/tests/data/tiny_tokenizer/") + file);
  if (text.empty()) std::abort();
  return text;
}

void load(std::string_view vocab, std::string_view merges) {
  try {
    const Tokenizer tokenizer = Tokenizer::from_text(vocab, merges, "fuzz", stagecoach::UseJit::kNever);
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
  switch (data[0] % 3) {
    case 0:
      load(rest, merges);
      break;
    case 1:
      load(vocab, rest);
      break;
    default: {
      const std::string_view members = rest.substr(0, rest.find('\0'));
      const std::string_view lines = rest.substr(members.size() < rest.size() ? members.size() + 1 : rest.size());
      std::string grown = vocab.substr(0, vocab.rfind('}'));
      load(grown.append(", ").append(members).append("}"), lines);
    }
  }
  return 0;
}
