#include "runtime/results.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <cmath>
#include <iterator>
#include <span>

#include "runtime/output_file.hpp"

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

// A model may have more ids than its vocabulary has tokens (padding), and may well generate one.
void append_token(std::string& bytes, const Tokenizer& tokenizer, std::int32_t id) {
  try {
    bytes += tokenizer.token_bytes(id);
  } catch (const TokenizerError&) {
    bytes += kReplacement;
  }
}

std::string bytes_of(const Tokenizer& tokenizer, std::span<const std::int32_t> ids) {
  std::string bytes;
  for (const std::int32_t id : ids) append_token(bytes, tokenizer, id);
  return bytes;
}

// The generated tokens that are text: all but a final end-of-text.
std::span<const std::int32_t> text_tokens(const Sample& sample, std::int32_t eos) {
  std::span<const std::int32_t> tokens = sample.tokens;
  if (sample.finish == FinishReason::kEos && !tokens.empty() && tokens.back() == eos)
    tokens = tokens.first(tokens.size() - 1);
  return tokens;
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

  void write(const Request& request, const Sample& sample) override {
    std::string line = fmt::format("{{\"index\":{},\"id\":{},\"sample\":{}", request.index, request.id.value_or("null"),
                                   sample.sample);
    line += fmt::format(",\"prompt\":{}", prompt(request));
    line += ",\"completion\":";
    line += tokenizer_ != nullptr ? json_string(bytes_of(*tokenizer_, text_tokens(sample, eos_))) : "null";
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
    file_.write(line);
  }
  void finish() override { file_.commit(); }

 private:
  std::string prompt(const Request& request) const {
    if (tokenizer_ == nullptr && !request.prompt) return "null";
    return json_string(request.prompt ? *request.prompt : bytes_of(*tokenizer_, request.tokens));
  }

  OutputFile file_;
  const Tokenizer* tokenizer_;
  std::int32_t eos_;
};

class TextSink : public ResultSink {
 public:
  TextSink(int fd, const Tokenizer* tokenizer, std::int32_t eos) : fd_(fd), tokenizer_(tokenizer), eos_(eos) {}

  void write(const Request& request, const Sample& sample) override {
    std::string out = request.id ? fmt::format("==> {}: {} <==\n", request.index, *request.id)
                                 : fmt::format("==> {} <==\n", request.index);
    if (tokenizer_ != nullptr) {
      out += to_valid_utf8(prompt_bytes(request, *tokenizer_) + bytes_of(*tokenizer_, text_tokens(sample, eos_)));
    } else {
      out += fmt::format("{} {}", fmt::join(request.tokens, " "), fmt::join(sample.tokens, " "));
    }
    out += "\n\n";
    write_all(fd_, out, name_of_descriptor(fd_));
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

std::unique_ptr<ResultSink> make_text_sink(int fd, const Tokenizer* tokenizer, std::int32_t eos) {
  return std::make_unique<TextSink>(fd, tokenizer, eos);
}

void TextStream::begin(const Request& request) {
  ignore_eos_ = request.ignore_eos;
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
  std::string bytes;
  append_token(bytes, *tokenizer_, token);
  write_all(fd_, decoder_.push(bytes), name_of_descriptor(fd_));
}

void TextStream::end() {
  write_all(fd_, decoder_.finish() + "\n", name_of_descriptor(fd_));
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
