#include "runtime/results_h5.hpp"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <system_error>
#include <vector>

#include "runtime/hdf5_file.hpp"
#include "runtime/json.hpp"
#include "runtime/line_reader.hpp"
#include "runtime/output_file.hpp"
#include "runtime/prompts.hpp"
#include "runtime/results.hpp"

namespace stagecoach {
namespace {

constexpr std::size_t kBufferBytes = 256 << 10;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

const std::vector<std::string> kFinishReasons = {"length", "eos", "stop"};
const std::vector<std::string> kIdKinds = {"none", "string", "number"};

// A line that is not as `generate` and `score` write them.
[[noreturn]] void fail(std::string_view what) {
  throw JsonError(fmt::format("is no line of results: {}", what));
}

// ---- columns: counted in the first pass, written in the second ----

// One dataset with one dimension.
class Column {
 public:
  Column(std::string path, H5Element element) : path_(std::move(path)), element_(element) {}
  Column(std::string path, const std::vector<std::string>& names)
      : path_(std::move(path)), element_(H5Element::kUInt8), names_(&names) {}

  template <typename T>
  void add(std::span<const T> values) {
    count_ += static_cast<std::int64_t>(values.size());
    if (writer_ == nullptr) return;
    const auto bytes = std::as_bytes(values);
    buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
    if (buffer_.size() >= kBufferBytes) flush();
  }
  template <typename T>
  void add_one(T value) {
    add(std::span<const T>(&value, 1));
  }

  std::int64_t count() const { return count_; }
  void declare(H5Writer& writer) const {
    if (names_ != nullptr) {
      writer.enum_dataset(path_, *names_, count_);
    } else {
      writer.dataset(path_, element_, {count_});
    }
  }
  void start_writing(H5Writer& writer) {
    writer_ = &writer;
    count_ = 0;
  }
  void flush() {
    if (writer_ == nullptr) return;
    writer_->write(path_, written_, buffer_);
    written_ += static_cast<std::int64_t>(buffer_.size()) / size_of(element_);
    buffer_.clear();
  }

 private:
  std::string path_;
  H5Element element_;
  const std::vector<std::string>* names_ = nullptr;
  H5Writer* writer_ = nullptr;
  std::int64_t count_ = 0;
  std::int64_t written_ = 0;
  std::vector<std::byte> buffer_;
};

// A group of values and offsets.
class RaggedColumn {
 public:
  RaggedColumn(const std::string& path, H5Element element)
      : offsets_(path + "/offsets", H5Element::kInt64), values_(path + "/values", element) {
    offsets_.add_one(std::int64_t{0});
  }
  // A line that has values, perhaps none; `absent` is a line without.
  template <typename T>
  void add(std::span<const T> values) {
    present_ = true;
    values_.add(values);
    offsets_.add_one(values_.count());
  }
  void add_text(std::string_view text) { add(std::span(text)); }
  void absent() { offsets_.add_one(values_.count()); }

  bool present() const { return present_; }
  void declare(H5Writer& writer) const {
    offsets_.declare(writer);
    values_.declare(writer);
  }
  void start_writing(H5Writer& writer) {
    offsets_.start_writing(writer);
    values_.start_writing(writer);
    offsets_.add_one(std::int64_t{0});
  }
  void flush() {
    offsets_.flush();
    values_.flush();
  }

 private:
  Column offsets_;
  Column values_;
  bool present_ = false;
};

// ---- lines ----

const Json& member(const Json& line, const char* key) {
  const Json* value = line.find(key);
  if (value == nullptr) fail(fmt::format("no {}", key));
  return *value;
}

template <typename T>
T whole(const Json& line, const char* key) {
  const std::int64_t* number = member(line, key).integer();
  if (number == nullptr || *number < std::numeric_limits<T>::min() || *number > std::numeric_limits<T>::max()) {
    fail(fmt::format("{} is no whole number, or too large", key));
  }
  return static_cast<T>(*number);
}

double real_or_nan(const Json& line, const char* key) {
  const Json& value = member(line, key);
  if (value.is_null()) return kNaN;
  if (const double* real = value.real()) return *real;
  if (const std::int64_t* number = value.integer()) return static_cast<double>(*number);
  fail(fmt::format("{} is no number", key));
}

std::vector<std::int32_t> token_list(const Json& line) {
  const Json::Array* list = member(line, "tokens").array();
  if (list == nullptr) fail("tokens is no list");
  std::vector<std::int32_t> tokens;
  for (const Json& item : *list) {
    const std::int64_t* id = item.integer();
    if (id == nullptr || *id < 0 || *id > INT32_MAX) fail("tokens holds what is no token id");
    tokens.push_back(static_cast<std::int32_t>(*id));
  }
  return tokens;
}

// What follows `"key":` in the text of a line. In a string the second quote would have a backslash before it, so the
// match is the key.
std::string_view text_after(std::string_view line, std::string_view key) {
  const std::string quoted = fmt::format("\"{}\":", key);
  const std::size_t at = line.find(quoted);
  return at == std::string_view::npos ? std::string_view() : line.substr(at + quoted.size());
}

// From the text, since a decimal that becomes a double first and then a float can be off by a bit.
std::vector<float> float_list(std::string_view text, const char* key) {
  std::vector<float> values;
  if (!text.starts_with('[')) fail(fmt::format("{} is no list", key));
  text.remove_prefix(1);
  while (!text.starts_with(']')) {
    if (text.starts_with("null")) {
      values.push_back(std::numeric_limits<float>::quiet_NaN());
      text.remove_prefix(4);
    } else {
      float value = 0.0F;
      const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
      if (error != std::errc()) fail(fmt::format("{} holds what is no float32", key));
      values.push_back(value);
      text.remove_prefix(static_cast<std::size_t>(end - text.data()));
    }
    if (text.starts_with(','))
      text.remove_prefix(1);
    else if (!text.starts_with(']'))
      fail(fmt::format("{} is no list of numbers", key));
  }
  return values;
}

// ---- the two kinds of files ----

class Table {
 public:
  explicit Table(bool scores) : scores_(scores) {}

  void add(const std::string& text) {
    const Json line = parse_json(text);
    index_.add_one(whole<std::int64_t>(line, "index"));
    add_id(line, text);
    tokens_.add(std::span<const std::int32_t>(token_list(line)));
    const std::string_view logprobs = text_after(text, "logprobs");
    if (logprobs.empty()) {
      logprobs_.absent();
    } else {
      logprobs_.add(std::span<const float>(float_list(logprobs, "logprobs")));
    }
    if (scores_) {
      sum_.add_one(real_or_nan(line, "sum_logprob"));
      perplexity_.add_one(real_or_nan(line, "perplexity"));
    } else {
      add_sample(line);
    }
  }

  void start_writing(H5Writer& writer) {
    writer.attribute("/", "format", std::string(scores_ ? "stagecoach-scores" : "stagecoach-results"));
    writer.attribute("/", "format_version", std::int64_t{1});
    for_each([&](auto& column) { column.declare(writer); });
    writer.begin_data();
    for_each([&](auto& column) { column.start_writing(writer); });
  }
  void flush() {
    for_each([](auto& column) { column.flush(); });
  }

 private:
  void add_id(const Json& line, std::string_view text) {
    const Json& id = member(line, "id");
    std::uint8_t kind = 0;
    if (const std::string* name = id.string()) {
      kind = 1;
      id_.add_text(*name);
    } else if (id.is_null()) {
      id_.add_text("");
    } else if (id.integer() != nullptr || id.real() != nullptr) {
      kind = 2;
      const std::string_view rest = text_after(text, "id");
      id_.add_text(rest.substr(0, rest.find_first_of(",} ")));
    } else {
      fail("id is neither a text nor a number");
    }
    id_kind_.add_one(kind);
  }

  void add_sample(const Json& line) {
    sample_.add_one(whole<std::int32_t>(line, "sample"));
    prompt_tokens_.add_one(whole<std::int32_t>(line, "prompt_tokens"));
    add_text(line, "prompt", prompt_);
    add_text(line, "completion", completion_);
    const std::string* reason = member(line, "finish_reason").string();
    std::size_t which = 0;
    while (which < kFinishReasons.size() && (reason == nullptr || kFinishReasons[which] != *reason)) ++which;
    if (which == kFinishReasons.size()) fail("unknown finish_reason");
    finish_reason_.add_one(static_cast<std::uint8_t>(which));
  }

  static void add_text(const Json& line, const char* key, RaggedColumn& column) {
    const Json& value = member(line, key);
    if (const std::string* text = value.string()) {
      column.add_text(*text);
    } else if (value.is_null()) {
      column.absent();
    } else {
      fail(fmt::format("{} is no text", key));
    }
  }

  // The columns that this file has, in the order of its data.
  template <typename Use>
  void for_each(const Use& use) {
    use(index_);
    if (scores_) {
      use(sum_);
      use(perplexity_);
    } else {
      use(sample_);
      use(prompt_tokens_);
      use(finish_reason_);
      if (prompt_.present()) use(prompt_);
      if (completion_.present()) use(completion_);
    }
    use(id_);
    use(id_kind_);
    use(tokens_);
    if (logprobs_.present()) use(logprobs_);
  }

  bool scores_;
  Column index_{"/index", H5Element::kInt64};
  Column sample_{"/sample", H5Element::kInt32};
  Column prompt_tokens_{"/prompt_tokens", H5Element::kInt32};
  Column finish_reason_{"/finish_reason", kFinishReasons};
  Column sum_{"/sum_logprob", H5Element::kFloat64};
  Column perplexity_{"/perplexity", H5Element::kFloat64};
  RaggedColumn prompt_{"/prompt", H5Element::kUInt8};
  RaggedColumn completion_{"/completion", H5Element::kUInt8};
  RaggedColumn id_{"/id", H5Element::kUInt8};
  Column id_kind_{"/id/kind", kIdKinds};
  RaggedColumn tokens_{"/tokens", H5Element::kInt32};
  RaggedColumn logprobs_{"/logprobs", H5Element::kFloat32};
};

void add_lines(LineReader& lines, Table& table) {
  for (std::string text; lines.next(text);) {
    try {
      table.add(text);
    } catch (const JsonError& error) {
      throw OutputError(fmt::format("{}: {}", lines.place(), error.what()));
    }
  }
}

bool holds_scores(LineReader& lines) {
  std::string first;
  const bool scores = lines.next(first) && !text_after(first, "sum_logprob").empty();
  lines.rewind();
  return scores;
}

}  // namespace

void write_results_h5(const std::string& jsonl_path, const std::string& h5_path) {
  OutputFile output(h5_path);
  try {
    LineReader lines(jsonl_path, "/tmp", std::size_t{1} << 40);  // a long text is one line
    Table table(holds_scores(lines));
    add_lines(lines, table);
    lines.rewind();
    H5Writer writer(output.partial_path());
    table.start_writing(writer);
    add_lines(lines, table);
    table.flush();
    writer.close();
  } catch (const Hdf5Error& error) {
    throw OutputError(error.what());
  } catch (const PromptError& error) {  // of the reader of lines
    throw OutputError(error.what());
  }
  output.commit();
}

}  // namespace stagecoach
