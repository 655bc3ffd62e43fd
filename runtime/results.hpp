// Where what became of prompts goes: text for people, JSON Lines for programs.
//
// A sink is called in input order, from one thread. Files appear under their final name only in `finish`, complete and
// synchronised to disk; until then they stand beside it as "NAME.partial". I/O failures throw OutputError.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

#include "runtime/request.hpp"
#include "runtime/stop_strings.hpp"
#include "runtime/tokenizer.hpp"

namespace stagecoach {

class OutputError : public std::runtime_error {  // exit status 1
 public:
  using std::runtime_error::runtime_error;
};
// No file can be where it was asked for: the folder is missing, or is not for this user to write in. Exit status 2.
class OutputPlaceError : public OutputError {
 public:
  using OutputError::OutputError;
};

class ResultSink {
 public:
  virtual ~ResultSink() = default;
  // All samples of a prompt, in order of their numbers.
  virtual void write(const Request& request, std::span<const Sample> samples) = 0;
  virtual void finish() = 0;
};

// One object per sample and line:
// {"index","id","sample","prompt","completion","prompt_tokens","tokens","logprobs"?,"finish_reason"}. `tokenizer` null:
// text fields are null. `eos` and a stop string are left out of completion. Fails at once when the file cannot be made.
std::unique_ptr<ResultSink> make_jsonl_sink(const std::string& path, const Tokenizer* tokenizer, std::int32_t eos);

// A sink for a file of results by its name: `make_jsonl` makes the JSON Lines; for a name that ends in .h5 they go into
// NAME.h5.lines beside it, which `finish` turns into the HDF5 file (runtime/results_h5.hpp) and removes.
std::unique_ptr<ResultSink> make_file_sink(
    const std::string& path, const std::function<std::unique_ptr<ResultSink>(const std::string& path)>& make_jsonl);

// For people and several samples, each as "==> INDEX <==" ("==> INDEX: ID, sample N <==" when it has an id and is one
// of several samples) on a line, prompt and completion in one piece, an empty line. Without a tokenizer, token ids
// separated by spaces. `fd` is not closed. EPIPE (for whoever ignores SIGPIPE) and full devices throw OutputError.
std::unique_ptr<ResultSink> make_text_sink(int fd, const Tokenizer* tokenizer, std::int32_t eos);

// For people and one sample: prompt and completion as they come, characters only when complete and when they cannot
// belong to a stop string any more. `begin`, `push` per
// token, `end`. Throws OutputError like the text sink.
class TextStream {
 public:
  TextStream(int fd, const Tokenizer* tokenizer, std::int32_t eos) : fd_(fd), tokenizer_(tokenizer), eos_(eos) {}
  void begin(const Request& request);
  void push(std::int32_t token);
  void end();

 private:
  int fd_;
  const Tokenizer* tokenizer_;
  std::int32_t eos_;
  bool ignore_eos_ = false;
  StopStrings stop_;
  StreamDecoder decoder_;
};

// The bytes that a generated token stands for. A model may have more ids than its vocabulary has tokens (padding), and
// may well generate one: U+FFFD.
std::string token_text(const Tokenizer& tokenizer, std::int32_t id);

// `value` as the shortest decimal that reads back as the same float32; -inf, inf and nan as null.
std::string shortest_decimal(float value);
// `text` (any bytes) as a JSON string with quotes; invalid UTF-8 becomes U+FFFD.
std::string json_string(std::string_view text);

}  // namespace stagecoach
