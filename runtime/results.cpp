#include "runtime/results.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <iterator>
#include <span>
#include <system_error>
#include <utility>

#include "runtime/output_file.hpp"
#include "runtime/results_h5.hpp"

namespace stagecoach {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

std::string_view name_of(FinishReason reason) {
  switch (reason) {
    case FinishReason::kLength:
      return "length";
    case FinishReason::kEos:
      return "eos";
    case FinishReason::kStop:
      return "stop";
  }
  return "?";
}

std::string bytes_of(const Tokenizer& tokenizer, std::span<const std::int32_t> ids) {
  std::string bytes;
  for (const std::int32_t id : ids) bytes += token_text(tokenizer, id);
  return bytes;
}

// The new text: without a final end-of-text, and up to a stop string.
std::string completion_bytes(const Sample& sample, const Tokenizer& tokenizer, std::int32_t eos) {
  std::span<const std::int32_t> tokens = sample.tokens;
  if (sample.finish == FinishReason::kEos && !tokens.empty() && tokens.back() == eos)
    tokens = tokens.first(tokens.size() - 1);
  std::string bytes = bytes_of(tokenizer, tokens);
  if (sample.finish == FinishReason::kStop) bytes.resize(static_cast<std::size_t>(sample.text_bytes));
  return bytes;
}

std::string prompt_bytes(const Request& request, const Tokenizer& tokenizer) {
  return request.prompt ? *request.prompt : bytes_of(tokenizer, request.tokens);
}

std::string name_of_descriptor(int fd) {
  return fd == STDOUT_FILENO ? "standard output" : fmt::format("descriptor {}", fd);
}

class JsonlSink : public ResultSink {
 public:
  JsonlSink(const std::string& path, const Tokenizer* tokenizer, std::int32_t eos)
      : file_(path), tokenizer_(tokenizer), eos_(eos) {}

  void write(const Request& request, std::span<const Sample> samples) override {
    for (const Sample& sample : samples) file_.write(line_of(request, sample));
  }
  void finish() override { file_.commit(); }

 private:
  std::string line_of(const Request& request, const Sample& sample) const {
    std::string line = fmt::format("{{\"index\":{},\"id\":{},\"sample\":{}", request.index, request.id.value_or("null"),
                                   sample.sample);
    line += fmt::format(",\"prompt\":{}", prompt(request));
    line += ",\"completion\":";
    line += tokenizer_ != nullptr ? json_string(completion_bytes(sample, *tokenizer_, eos_)) : "null";
    line += fmt::format(",\"prompt_tokens\":{},\"tokens\":[{}]", sample.prompt_tokens, fmt::join(sample.tokens, ","));
    if (request.logprobs) {
      line += ",\"logprobs\":[";
      for (std::size_t i = 0; i < sample.logprobs.size(); ++i) {
        if (i > 0) line += ',';
        line += shortest_decimal(sample.logprobs[i]);
      }
      line += ']';
    }
    line += fmt::format(",\"finish_reason\":\"{}\"}}\n", name_of(sample.finish));
    return line;
  }
  std::string prompt(const Request& request) const {
    if (tokenizer_ == nullptr && !request.prompt) return "null";
    return json_string(request.prompt ? *request.prompt : bytes_of(*tokenizer_, request.tokens));
  }

  OutputFile file_;
  const Tokenizer* tokenizer_;
  std::int32_t eos_;
};

class H5Sink final : public ResultSink {
 public:
  H5Sink(std::string path, std::string lines_path, std::unique_ptr<ResultSink> lines)
      : path_(std::move(path)), lines_path_(std::move(lines_path)), lines_(std::move(lines)) {}

  void write(const Request& request, std::span<const Sample> samples) override { lines_->write(request, samples); }
  void finish() override {
    lines_->finish();
    write_results_h5(lines_path_, path_);
    std::error_code ignored;  // what remains is only untidy
    std::filesystem::remove(lines_path_, ignored);
  }

 private:
  std::string path_, lines_path_;
  std::unique_ptr<ResultSink> lines_;
};

class TextSink : public ResultSink {
 public:
  TextSink(int fd, const Tokenizer* tokenizer, std::int32_t eos) : fd_(fd), tokenizer_(tokenizer), eos_(eos) {}

  void write(const Request& request, std::span<const Sample> samples) override {
    for (const Sample& sample : samples) {
      const std::string id = request.id ? fmt::format(": {}", *request.id) : "";
      const std::string number = request.num_samples > 1 ? fmt::format(", sample {}", sample.sample) : "";
      std::string out = fmt::format("==> {}{}{} <==\n", request.index, id, number);
      if (tokenizer_ != nullptr) {
        out += to_valid_utf8(prompt_bytes(request, *tokenizer_) + completion_bytes(sample, *tokenizer_, eos_));
      } else {
        out += fmt::format("{} {}", fmt::join(request.tokens, " "), fmt::join(sample.tokens, " "));
      }
      out += "\n\n";
      write_all(fd_, out, name_of_descriptor(fd_));
    }
  }
  void finish() override {}

 private:
  int fd_;
  const Tokenizer* tokenizer_;
  std::int32_t eos_;
};

}  // namespace

std::unique_ptr<ResultSink> make_jsonl_sink(const std::string& path, const Tokenizer* tokenizer, std::int32_t eos) {
  return std::make_unique<JsonlSink>(path, tokenizer, eos);
}

std::unique_ptr<ResultSink> make_file_sink(
    const std::string& path, const std::function<std::unique_ptr<ResultSink>(const std::string& path)>& make_jsonl) {
  if (!path.ends_with(".h5")) return make_jsonl(path);
  require_replaceable(path);
  const std::string lines = path + ".lines";
  return std::make_unique<H5Sink>(path, lines, make_jsonl(lines));
}

std::unique_ptr<ResultSink> make_text_sink(int fd, const Tokenizer* tokenizer, std::int32_t eos) {
  return std::make_unique<TextSink>(fd, tokenizer, eos);
}

void TextStream::begin(const Request& request) {
  ignore_eos_ = request.ignore_eos;
  stop_ = StopStrings(request.stop);
  decoder_ = StreamDecoder();
  const std::string text = tokenizer_ != nullptr ? decoder_.push(prompt_bytes(request, *tokenizer_))
                                                 : fmt::format("{}", fmt::join(request.tokens, " "));
  write_all(fd_, text, name_of_descriptor(fd_));
}

void TextStream::push(std::int32_t token) {
  if (tokenizer_ == nullptr) {
    write_all(fd_, fmt::format(" {}", token), name_of_descriptor(fd_));
    return;
  }
  if (token == eos_ && !ignore_eos_) return;
  write_all(fd_, decoder_.push(stop_.push(token_text(*tokenizer_, token))), name_of_descriptor(fd_));
}

void TextStream::end() {
  const std::string held = decoder_.push(stop_.finish());
  write_all(fd_, held + decoder_.finish() + "\n", name_of_descriptor(fd_));
}

std::string token_text(const Tokenizer& tokenizer, std::int32_t id) {
  try {
    return std::string(tokenizer.token_bytes(id));
  } catch (const TokenizerError&) {
    return std::string(kReplacement);
  }
}

std::string shortest_decimal(float value) {
  return std::isfinite(value) ? fmt::format("{}", value) : "null";
}

std::string json_string(std::string_view text) {
  std::string out = "\"";
  for (const char c : to_valid_utf8(text)) {
    const auto byte = static_cast<unsigned char>(c);
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      default:
        if (byte < 0x20) {
          fmt::format_to(std::back_inserter(out), "\\u{:04x}", byte);
        } else {
          out += c;
        }
    }
  }
  return out + '"';
}

}  // namespace stagecoach
