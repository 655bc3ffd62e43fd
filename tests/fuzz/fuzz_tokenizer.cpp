// libFuzzer: for any bytes, encoding and decoding is the identity, JIT and interpreter agree, and text
// streamed token by token is the text decoded at once.

#include "runtime/tokenizer.hpp"

#include <string>
#include <string_view>
#include <vector>

#include "tests/fuzz/fuzz.hpp"

namespace {

using stagecoach::Tokenizer;
using stagecoach::UseJit;
using stagecoach::fuzz::require;

Tokenizer load(UseJit use_jit) {
  const std::filesystem::path folder = STAGECOACH_SOURCE_DIR "/tests/data/tiny_tokenizer";
  return Tokenizer::from_files(folder / "vocab.json", folder / "merges.txt", use_jit);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Tokenizer tokenizer = load(UseJit::kWhenAvailable);
  static const Tokenizer interpreting = load(UseJit::kNever);
  const std::string_view text(reinterpret_cast<const char*>(data), size);

  const std::vector<std::int32_t> ids = tokenizer.encode(text);
  require(tokenizer.decode(ids) == text);
  require(interpreting.encode(text) == ids);

  stagecoach::StreamDecoder decoder;
  std::string streamed;
  for (const std::int32_t id : ids) streamed += decoder.push(tokenizer.token_bytes(id));
  streamed += decoder.finish();
  const std::string valid = stagecoach::to_valid_utf8(text);
  require(streamed == valid);
  require(stagecoach::to_valid_utf8(valid) == valid);
  return 0;
}
