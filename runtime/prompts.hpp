// Prompts from a file, standard input or the command line, one Request at a time.
//
// `.jsonl` has one object per line with "prompt" or "tokens", optionally "id" (a string or number) and
// "max_new_tokens"; standard input too when its first line begins like such an object. Anything else is one prompt per
// line, ended by "\n" or "\r\n" (a final line without newline counts, an empty line is an error: an empty prompt),
// bytes as they are, valid UTF-8 or not. The whole input is checked by `check` before anything runs, then `next` reads
// it again from the start, so it is never held whole.
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "runtime/request.hpp"
#include "runtime/tokenizer.hpp"

namespace stagecoach {

// A line that cannot be used: "FILE:LINE: what, what would work". Exit status 2.
class PromptError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Defaults for lines that say nothing, and the model's bounds.
struct PromptOptions {
  std::int32_t max_new_tokens = 128;
  bool ignore_eos = false;
  bool logprobs = false;
  bool truncate_long = false;  // --long-prompt truncate: keep the last tokens
  std::int32_t n_positions = 0;
  std::int32_t vocab_size = 0;
  std::int32_t shard = 0;  // --shard I/N: every shards-th prompt from `shard`; indices stay those of the whole input
  std::int32_t shards = 1;
  std::string temporary_folder = "/tmp";  // for a copy of standard input; launch passes TMPDIR
};

struct PromptSummary {
  std::int64_t count = 0;  // prompts of this shard
  std::int32_t longest_positions =
      0;  // most positions that any of them may need: prompt + new tokens, at most n_positions
};

class PromptReader {
 public:
  // `path` "-" is standard input, spooled to an unnamed temporary file. `tokenizer` may be null: token prompts only.
  // Both referents must outlive the reader. Throws PromptError when the file cannot be opened.
  static PromptReader from_file(const std::string& path, const Tokenizer* tokenizer, const PromptOptions& options);
  static PromptReader from_texts(std::vector<std::string> texts, const Tokenizer* tokenizer,
                                 const PromptOptions& options);
  PromptReader(PromptReader&&) noexcept;
  PromptReader& operator=(PromptReader&&) noexcept;
  ~PromptReader();

  PromptSummary check();          // reads all of it; throws PromptError at the first bad line; rewinds
  std::optional<Request> next();  // in input order

 private:
  struct Impl;
  explicit PromptReader(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace stagecoach
