// Any bytes as a file of prompts, text or (first byte odd) JSON lines: if the check passes, reading gives
// what it counted.
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "runtime/prompts.hpp"
#include "tests/unit/byte_tokenizer.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const stagecoach::Tokenizer tokenizer = stagecoach::byte_tokenizer();
  if (size == 0) return 0;
  const bool json_lines = data[0] % 2 == 1;
  static const std::string folder = [] {
    char name[] = "/tmp/stagecoach_fuzz_XXXXXX";
    if (::mkdtemp(name) == nullptr) std::abort();
    return std::string(name);
  }();
  const std::string path = folder + (json_lines ? "/p.jsonl" : "/p.txt");
  std::FILE* file = std::fopen(path.c_str(), "wb");
  std::fwrite(data + 1, 1, size - 1, file);
  std::fclose(file);

  stagecoach::PromptOptions options;
  options.n_positions = 64;
  options.vocab_size = 258;
  options.truncate_long = data[0] % 4 >= 2;
  try {
    auto reader = stagecoach::PromptReader::from_file(path, &tokenizer, options);
    const std::int64_t checked = reader.check();
    std::int64_t count = 0;
    while (const auto request = reader.next()) {
      if (request->index != count || request->tokens.empty() || request->tokens.size() > 64) std::abort();
      ++count;
    }
    if (count != checked) std::abort();
  } catch (const stagecoach::PromptError& error) {
    const std::string what = error.what();
    if (what.rfind(path, 0) != 0 || what.find('\n') != std::string::npos) std::abort();
  }
  return 0;
}
