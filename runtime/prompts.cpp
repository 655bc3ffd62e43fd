// How a line becomes a Request. Text lines end with "\n" or "\r\n" and are bytes as they are: no trimming, no
// byte order mark, invalid UTF-8 allowed. In JSON a null is the same as a missing key.
#include "runtime/prompts.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <system_error>

#include "partition/wording.hpp"
#include "runtime/json.hpp"
#include "runtime/line_reader.hpp"
#include "runtime/random.hpp"
#include "runtime/results.hpp"

namespace stagecoach {
namespace {

[[noreturn]] void fail(std::string_view key, const std::string& what) {
  throw PromptError(fmt::format("{}: {}", key, what));
}

// What one line says, before defaults and the model's bounds. PromptErrors here lack the place;
// `PromptReader` adds it.
struct Line {
  std::optional<std::string> text;
  std::vector<std::int32_t> tokens;
  std::optional<std::string> id;
  std::optional<std::int32_t> max_new_tokens, top_k, num_samples;
  std::optional<double> temperature, top_p, repetition_penalty;
  std::optional<std::uint64_t> seed;
  std::optional<std::vector<std::string>> stop;
};

std::vector<std::int32_t> token_list(const Json& value, std::int32_t vocab_size) {
  const Json::Array* list = value.array();
  if (list == nullptr) fail("tokens", fmt::format("is {}, not a list of token ids", value.type_name()));
  std::vector<std::int32_t> tokens;
  tokens.reserve(list->size());
  for (const Json& item : *list) {
    const std::int64_t* id = item.integer();
    if (id == nullptr) fail("tokens", fmt::format("{} in the list, which holds token ids only", item.type_name()));
    if (*id < 0 || *id >= vocab_size) {
      fail("tokens",
           fmt::format("id {} is outside the model's vocabulary of {} (0 to {})", *id, vocab_size, vocab_size - 1));
    }
    tokens.push_back(static_cast<std::int32_t>(*id));
  }
  if (tokens.empty()) fail("tokens", "an empty list; a prompt has at least one token");
  return tokens;
}

std::int64_t whole(std::string_view key, const Json& value, const Bounds<std::int64_t>& bounds) {
  const std::int64_t* given = value.integer();
  if (given == nullptr) fail(key, fmt::format("is {}, not a whole number", value.type_name()));
  if (!bounds.hold(*given)) {
    fail(key, fmt::format("{} is not a number from {} to {}", *given, bounds.low, bounds.high));
  }
  return *given;
}

double real(std::string_view key, const Json& value, const Bounds<double>& bounds) {
  const std::int64_t* integer = value.integer();
  const double* given = value.real();
  if (integer == nullptr && given == nullptr) fail(key, fmt::format("is {}, not a number", value.type_name()));
  const double number = integer != nullptr ? static_cast<double>(*integer) : *given;
  if (!bounds.hold(number)) {
    fail(key, fmt::format("{} is not a number from {} to {}", number, bounds.low, bounds.high));
  }
  return number;
}

std::vector<std::string> stop_list(const Json& value) {
  std::vector<std::string> stops;
  const auto add = [&stops](const Json& item) {
    const std::string* text = item.string();
    if (text == nullptr) fail("stop", fmt::format("holds {}; give a string or a list of strings", item.type_name()));
    if (text->empty()) fail("stop", "holds an empty string, which would stop at once");
    if (text->size() > kMaxStopBytes) fail("stop", fmt::format("is longer than {} bytes", kMaxStopBytes));
    stops.push_back(*text);
  };
  if (const Json::Array* list = value.array()) {
    for (const Json& item : *list) add(item);
  } else {
    add(value);
  }
  return stops;
}

// The optional keys: name, and how a value becomes part of a Line.
struct LineKey {
  std::string_view name;
  void (*read)(Line& line, const Json& value);
};
constexpr LineKey kLineKeys[] = {
    {"max_new_tokens",
     [](Line& line, const Json& v) {
       line.max_new_tokens = static_cast<std::int32_t>(whole("max_new_tokens", v, kNewTokenBounds));
     }},
    {"temperature", [](Line& line, const Json& v) { line.temperature = real("temperature", v, kTemperatureBounds); }},
    {"top_k",
     [](Line& line, const Json& v) { line.top_k = static_cast<std::int32_t>(whole("top_k", v, kTopKBounds)); }},
    {"top_p", [](Line& line, const Json& v) { line.top_p = real("top_p", v, kTopPBounds); }},
    {"repetition_penalty",
     [](Line& line, const Json& v) { line.repetition_penalty = real("repetition_penalty", v, kPenaltyBounds); }},
    {"seed", [](Line& line, const Json& v) { line.seed = static_cast<std::uint64_t>(whole("seed", v, kSeedBounds)); }},
    {"num_samples",
     [](Line& line, const Json& v) {
       line.num_samples = static_cast<std::int32_t>(whole("num_samples", v, kSampleBounds));
     }},
    {"stop", [](Line& line, const Json& v) { line.stop = stop_list(v); }},
};

[[noreturn]] void fail_unknown(const std::string& key) {
  std::vector<std::string> known = {"prompt", "tokens", "id"};
  for (const LineKey& k : kLineKeys) known.emplace_back(k.name);
  fail(shown(key), "unknown key" + suggestion(key, known));
}

// A string or a whole number, as JSON again: it goes into the results as it came.
std::string id_text(const Json& value) {
  if (const std::string* text = value.string()) return json_string(*text);
  if (const std::int64_t* whole = value.integer()) return fmt::format("{}", *whole);
  fail("id", fmt::format("is {}, not a string or a whole number", value.type_name()));
}

Line parse_object_line(const std::string& text, std::int32_t vocab_size) {
  Json json;
  try {
    json = parse_json(text);
  } catch (const JsonError& error) {
    throw PromptError(fmt::format("not JSON: {}", error.what()));
  }
  const Json::Object* object = json.object();
  if (object == nullptr) {
    throw PromptError(fmt::format("{}, not an object; write {{\"prompt\": \"...\"}} on each line", json.type_name()));
  }
  Line line;
  for (const auto& [key, value] : *object) {
    const auto known = std::ranges::find(kLineKeys, key, &LineKey::name);
    if (key != "prompt" && key != "tokens" && key != "id" && known == std::end(kLineKeys)) fail_unknown(key);
    if (value.is_null()) continue;
    if (key == "prompt") {
      const std::string* given = value.string();
      if (given == nullptr) fail(key, fmt::format("is {}, not a string; put it in quotes", value.type_name()));
      line.text = *given;
    } else if (key == "id") {
      line.id = id_text(value);
    } else if (key == "tokens") {
      line.tokens = token_list(value, vocab_size);
    } else {
      known->read(line, value);
    }
  }
  if (line.text && !line.tokens.empty()) throw PromptError("both prompt and tokens; give one of them");
  if (!line.text && line.tokens.empty()) throw PromptError("neither prompt nor tokens; give one of them");
  return line;
}

std::vector<std::int32_t> encode(const std::string& text, const Tokenizer* tokenizer, std::int32_t vocab_size) {
  if (text.empty()) throw PromptError("an empty prompt; a prompt has at least one token");
  if (tokenizer == nullptr) {
    throw PromptError(
        "a text, but the model has no vocabulary files; give token ids, as in {\"tokens\": [1, 2]} in a "
        ".jsonl file");
  }
  std::vector<std::int32_t> tokens = tokenizer->encode(text);
  const auto outside = std::find_if(tokens.begin(), tokens.end(), [&](std::int32_t id) { return id >= vocab_size; });
  if (outside != tokens.end()) {
    throw PromptError(
        fmt::format("its token {} is outside the model's vocabulary of {}; the model's vocabulary files "
                    "do not fit its weights",
                    *outside, vocab_size));
  }
  return tokens;
}

// A text is held in memory anyway.
std::string read_whole(const std::string& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    throw PromptError(fmt::format("{}: is a folder, not a file with a text", shown(path)));
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) throw PromptError(fmt::format("{}: {}", shown(path), std::strerror(errno)));
  std::string text{std::istreambuf_iterator<char>(file), {}};
  if (file.bad()) throw PromptError(fmt::format("{}: cannot be read", shown(path)));
  return text;
}

// Standard input has no name to tell its form: JSON Lines when the first line begins like an object with a prompt.
bool looks_like_json_lines(LineReader& lines) {
  std::string first;
  const bool any = lines.next(first);
  lines.rewind();
  const std::size_t start = first.find_first_not_of(" \t");
  if (!any || start == std::string::npos || first[start] != '{') return false;
  return first.find("\"prompt\"") != std::string::npos || first.find("\"tokens\"") != std::string::npos;
}

}  // namespace

struct PromptReader::Impl {
  const Tokenizer* tokenizer = nullptr;
  PromptOptions options;
  std::unique_ptr<LineReader> lines;  // null: `texts`
  bool json_lines = false;
  std::vector<std::string> texts;  // or names of files that are read whole
  bool texts_are_files = false;
  std::int64_t taken = 0;  // prompts of the whole input, this shard's and others'
  std::string text;        // what was taken last

  // Takes the next line or text. False at the end.
  bool advance() {
    if (lines != nullptr) {
      if (!lines->next(text)) return false;
      if (!json_lines && lines->line_was_ended() && text.ends_with('\r')) text.pop_back();
    } else {
      if (taken == static_cast<std::int64_t>(texts.size())) return false;
      text = texts[static_cast<std::size_t>(taken)];
      if (texts_are_files) text = read_whole(text);
    }
    ++taken;
    return true;
  }
  bool is_mine() const { return (taken - 1) % options.shards == options.shard; }

  Request request() const {
    try {
      return interpret();
    } catch (const PromptError& error) {
      const std::string place = lines != nullptr  ? lines->place()
                                : texts_are_files ? shown(texts[static_cast<std::size_t>(taken - 1)])
                                                  : fmt::format("prompt {}", taken);
      throw PromptError(fmt::format("{}: {}", place, error.what()));
    }
  }

  Request interpret() const {
    Line line;
    if (json_lines) {
      line = parse_object_line(text, options.vocab_size);
    } else {
      line.text = text;
    }
    Request request;
    request.index = taken - 1;
    request.id = std::move(line.id);
    request.max_new_tokens = line.max_new_tokens.value_or(options.max_new_tokens);
    request.sampling.temperature = line.temperature.value_or(options.sampling.temperature);
    request.sampling.top_k = line.top_k.value_or(options.sampling.top_k);
    request.sampling.top_p = line.top_p.value_or(options.sampling.top_p);
    request.sampling.repetition_penalty = line.repetition_penalty.value_or(options.sampling.repetition_penalty);
    request.seed = line.seed.value_or(request_seed(options.run_seed, request.index));
    request.num_samples = line.num_samples.value_or(options.num_samples);
    request.stop = line.stop ? std::move(*line.stop) : options.stop;
    if (!request.stop.empty() && tokenizer == nullptr) {
      fail("stop", "needs the text of tokens, but the model has no vocabulary files; leave it out");
    }
    request.ignore_eos = options.ignore_eos;
    request.logprobs = options.logprobs;
    request.tokens = line.text ? encode(*line.text, tokenizer, options.vocab_size) : std::move(line.tokens);
    request.prompt = std::move(line.text);
    fit(request.tokens);
    return request;
  }

  // The last of n_positions tokens still yields one more, so a prompt may fill them all.
  void fit(std::vector<std::int32_t>& tokens) const {
    const auto most = static_cast<std::size_t>(options.n_positions);
    if (tokens.size() <= most || options.any_length) return;
    if (!options.truncate_long) {
      throw PromptError(
          fmt::format("{} tokens, but the model has {} positions; shorten it, or keep its last {} tokens "
                      "with --long-prompt truncate",
                      tokens.size(), most, most));
    }
    tokens.erase(tokens.begin(), tokens.end() - static_cast<std::ptrdiff_t>(most));
  }

  void rewind() {
    if (lines != nullptr) lines->rewind();
    taken = 0;
  }
};

PromptReader::PromptReader(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
PromptReader::PromptReader(PromptReader&&) noexcept = default;
PromptReader& PromptReader::operator=(PromptReader&&) noexcept = default;
PromptReader::~PromptReader() = default;

PromptReader PromptReader::from_file(const std::string& path, const Tokenizer* tokenizer,
                                     const PromptOptions& options) {
  auto impl = std::make_unique<Impl>();
  impl->tokenizer = tokenizer;
  impl->options = options;
  impl->lines = std::make_unique<LineReader>(path, options.temporary_folder);
  impl->json_lines = path.ends_with(".jsonl") || (path == "-" && looks_like_json_lines(*impl->lines));
  return PromptReader(std::move(impl));
}

PromptReader PromptReader::from_whole_files(const std::vector<std::string>& paths, const Tokenizer* tokenizer,
                                            const PromptOptions& options) {
  PromptReader reader = from_texts(paths, tokenizer, options);
  reader.impl_->texts_are_files = true;
  return reader;
}

PromptReader PromptReader::from_texts(std::vector<std::string> texts, const Tokenizer* tokenizer,
                                      const PromptOptions& options) {
  auto impl = std::make_unique<Impl>();
  impl->tokenizer = tokenizer;
  impl->options = options;
  impl->texts = std::move(texts);
  return PromptReader(std::move(impl));
}

std::int64_t PromptReader::check(const std::function<void(const Request&)>& each) {
  impl_->rewind();
  std::int64_t count = 0;
  while (impl_->advance()) {
    const Request request = impl_->request();  // other shards' lines too: a bad file is bad for all of them
    if (!impl_->is_mine()) continue;
    ++count;
    if (each) each(request);
  }
  if (impl_->taken == 0) {
    throw PromptError(fmt::format("{}: no prompts in it", impl_->lines != nullptr ? impl_->lines->name() : "--prompt"));
  }
  impl_->rewind();
  return count;
}

std::optional<Request> PromptReader::next() {
  while (impl_->advance()) {
    if (impl_->is_mine()) return impl_->request();
  }
  return std::nullopt;
}

}  // namespace stagecoach
