// Prompts from a file, standard input or the command line, one Request at a time.
//
// `.jsonl` has one object per line with "prompt" or "tokens", optionally "id" (a string or number) and any of
// "max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed", "num_samples", "stop" (a string or a
// list of strings); standard input too when its first line begins like such an object. Anything else is one prompt per
// line, ended by "\n" or "\r\n" (a final line without newline counts, an empty line is an error: an empty prompt),
// bytes as they are, valid UTF-8 or not. The whole input is checked by `check` before anything runs, then `next` reads
// it again from the start, so it is never held whole.
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <functional>
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
  SamplingOptions sampling;
  std::uint64_t run_seed = 0;  // a request without a seed of its own gets a mix of this and its index
  std::int32_t num_samples = 1;
  std::vector<std::string> stop;
  bool ignore_eos = false;
  bool logprobs = false;
  bool truncate_long = false;  // --long-prompt truncate: keep the last tokens
  bool any_length = false;     // longer than n_positions is no mistake (score)
  std::int32_t n_positions = 0;
  std::int32_t vocab_size = 0;
  std::int32_t shard = 0;  // --shard I/N: every shards-th prompt from `shard`; indices stay those of the whole input
  std::int32_t shards = 1;
  std::string temporary_folder = "/tmp";  // for a copy of standard input; launch passes TMPDIR
};

class PromptReader {
 public:
  // `path` "-" is standard input, spooled to an unnamed temporary file. `tokenizer` may be null: token prompts only.
  // Both referents must outlive the reader. Throws PromptError when the file cannot be opened.
  static PromptReader from_file(const std::string& path, const Tokenizer* tokenizer, const PromptOptions& options);
  // Each file whole is one text, bytes as they are.
  static PromptReader from_whole_files(const std::vector<std::string>& paths, const Tokenizer* tokenizer,
                                       const PromptOptions& options);
  static PromptReader from_texts(std::vector<std::string> texts, const Tokenizer* tokenizer,
                                 const PromptOptions& options);
  PromptReader(PromptReader&&) noexcept;
  PromptReader& operator=(PromptReader&&) noexcept;
  ~PromptReader();

  // Reads all of it, shows `each` the prompts of this shard, rewinds, and returns how many they are. Throws PromptError
  // at the first bad line, also of other shards.
  std::int64_t check(const std::function<void(const Request&)>& each = {});
  std::optional<Request> next();  // in input order

 private:
  struct Impl;
  explicit PromptReader(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace stagecoach
