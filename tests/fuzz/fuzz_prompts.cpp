// Any bytes as a file of prompts, text or (first byte odd) JSON lines: if the check passes, reading gives
// what it counted, within the bounds of the model; otherwise one line that names the file.
#include <string>

#include "runtime/prompts.hpp"
#include "tests/fuzz/fuzz.hpp"
#include "tests/unit/byte_tokenizer.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const stagecoach::Tokenizer tokenizer = stagecoach::byte_tokenizer();
  if (size == 0) return 0;
  const bool json_lines = data[0] % 2 == 1;
  static const stagecoach::fuzz::FuzzFolder folder;
  const std::string path = folder / (json_lines ? "p.jsonl" : "p.txt");
  stagecoach::fuzz::write_file(path, stagecoach::fuzz::text_of(data + 1, size - 1));

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
      for (const std::int32_t token : request->tokens) stagecoach::fuzz::require(token >= 0 && token < 258);
      stagecoach::fuzz::require(is_valid(request->sampling) && request->num_samples >= 1);
      stagecoach::fuzz::require(request->max_new_tokens >= 1);
      ++count;
    }
    if (count != checked) std::abort();
  } catch (const stagecoach::PromptError& error) {
    const std::string what = error.what();
    stagecoach::fuzz::require(what.starts_with(path));
    stagecoach::fuzz::require_plain(what);
  }
  return 0;
}
