#include "runtime/json.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_set>

#include "partition/wording.hpp"

namespace stagecoach {
namespace {

constexpr std::size_t kMaxDepth = 64;       // the tree is destroyed by recursion, and no format of ours nests deeply
constexpr std::size_t kLinearMembers = 16;  // below this a scan for duplicates beats hashing

// Reads bytes and reports how far the parser has got, which its events do not tell.
class CountingIterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  CountingIterator(const char* at, const char** progress) : at_(at), progress_(progress) {}
  const char& operator*() const { return *at_; }
  CountingIterator& operator++() {
    ++at_;
    *progress_ = at_;
    return *this;
  }
  CountingIterator operator++(int) {
    CountingIterator old = *this;
    ++*this;
    return old;
  }
  bool operator==(const CountingIterator& other) const { return at_ == other.at_; }
  bool operator!=(const CountingIterator& other) const { return at_ != other.at_; }

 private:
  const char* at_;
  const char** progress_;
};

[[noreturn]] void fail_at(std::string_view text, std::size_t byte, std::string_view what) {
  byte = std::min(byte, text.size());
  std::size_t line = 1;
  std::size_t column = 1;
  for (const char c : text.substr(0, byte)) {
    ++column;
    if (c == '\n') {
      ++line;
      column = 1;
    }
  }
  throw JsonError(fmt::format("line {}, column {} (byte {}): {}", line, column, byte, what));
}

// "[json.exception.parse_error.101] parse error at line 1, column 2: syntax error ..." -> "syntax error ...".
std::string without_prefix(std::string_view what) {
  if (const std::size_t end = what.find("] "); end != std::string_view::npos) what.remove_prefix(end + 2);
  if (what.starts_with("parse error")) {
    if (const std::size_t colon = what.find(": "); colon != std::string_view::npos) what.remove_prefix(colon + 2);
  }
  return printable(what, 300);
}

class TreeBuilder {
 public:
  using number_integer_t = nlohmann::json::number_integer_t;
  using number_unsigned_t = nlohmann::json::number_unsigned_t;
  using number_float_t = nlohmann::json::number_float_t;
  using string_t = nlohmann::json::string_t;
  using binary_t = nlohmann::json::binary_t;

  bool null() { return add(Json()); }
  bool boolean(bool value) { return add(Json(value)); }
  bool number_integer(number_integer_t value) { return add(Json(static_cast<std::int64_t>(value))); }
  bool number_unsigned(number_unsigned_t value) {
    if (value > static_cast<number_unsigned_t>(INT64_MAX)) return add(Json(static_cast<double>(value)));
    return add(Json(static_cast<std::int64_t>(value)));
  }
  bool number_float(number_float_t value, const string_t&) { return add(Json(value)); }
  bool string(string_t& value) { return add(Json(std::move(value))); }
  bool binary(binary_t&) { return false; }  // never called for text

  bool start_object(std::size_t) { return open(Json(Json::Object())); }
  bool key(string_t& name) {
    Frame& frame = frames_.back();
    if (!is_new_key(frame, name)) {
      error_ = fmt::format("duplicate key \"{}\"", printable(name));
      return false;
    }
    frame.value.object()->emplace_back(std::move(name), nullptr);
    return true;
  }
  bool end_object() { return close(); }
  bool start_array(std::size_t) { return open(Json(Json::Array())); }
  bool end_array() { return close(); }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception& exception) {
    error_ = without_prefix(exception.what());
    return false;
  }

  const std::string& error() const { return error_; }
  Json take() { return std::move(root_); }

 private:
  struct Frame {
    Json value;
    std::unordered_set<std::string> keys;  // filled once the object has more than kLinearMembers members
  };

  static bool is_new_key(Frame& frame, const std::string& name) {
    const Json::Object& members = *frame.value.object();
    if (members.size() < kLinearMembers) return frame.value.find(name) == nullptr;
    if (frame.keys.empty()) {
      for (const auto& [key, value] : members) frame.keys.insert(key);
    }
    return frame.keys.insert(name).second;
  }

  bool add(Json value) {
    if (frames_.empty()) {
      root_ = std::move(value);
    } else if (Json::Array* list = frames_.back().value.array()) {
      list->push_back(std::move(value));
    } else {
      frames_.back().value.object()->back().second = std::move(value);
    }
    return true;
  }
  bool open(Json value) {
    if (frames_.size() == kMaxDepth) {
      error_ = fmt::format("lists and objects nest deeper than {}", kMaxDepth);
      return false;
    }
    frames_.push_back({std::move(value), {}});
    return true;
  }
  bool close() {
    Json value = std::move(frames_.back().value);
    frames_.pop_back();
    return add(std::move(value));
  }

  std::vector<Frame> frames_;
  Json root_;
  std::string error_;
};

}  // namespace

const Json* Json::find(std::string_view key) const {
  if (const Object* members = object()) {
    for (const auto& [name, value] : *members) {
      if (name == key) return &value;
    }
  }
  return nullptr;
}

const char* Json::type_name() const {
  constexpr const char* kNames[] = {"null", "a boolean", "a number", "a number", "a string", "a list", "an object"};
  static_assert(std::size(kNames) == std::variant_size_v<decltype(value_)>);
  return kNames[value_.index()];
}

std::string shown(const Json& value) {
  if (const bool* flag = value.boolean()) return *flag ? "true" : "false";
  if (const std::int64_t* number = value.integer()) return fmt::format("{}", *number);
  if (const double* number = value.real()) return fmt::format("{}", *number);
  if (const std::string* text = value.string()) return fmt::format("\"{}\"", printable(*text, 60));
  return value.type_name();
}

Json parse_json(std::string_view text) {
  // The library takes a zero byte for the end of its input, so what follows one would pass unseen.
  if (const std::size_t zero = text.find('\0'); zero != std::string_view::npos) fail_at(text, zero, "a zero byte");
  const char* progress = text.data();
  TreeBuilder builder;
  const bool good = nlohmann::json::sax_parse(CountingIterator(text.data(), &progress),
                                              CountingIterator(text.data() + text.size(), &progress), &builder);
  if (!good) fail_at(text, static_cast<std::size_t>(progress - text.data()), builder.error());
  return builder.take();
}

}  // namespace stagecoach
