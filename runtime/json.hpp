// JSON as a plain value tree. Strict: one value, UTF-8, no duplicate keys, bounded nesting; every error has its offset.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace stagecoach {

class JsonError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class Json {
 public:
  using Array = std::vector<Json>;
  using Object = std::vector<std::pair<std::string, Json>>;  // in file order

  Json() = default;  // null
  template <typename T>
  explicit Json(T value) : value_(std::move(value)) {}

  bool is_null() const { return std::holds_alternative<std::nullptr_t>(value_); }
  // Pointers are null when the value has another type. Integers that fit 64 bits are integers, all else are doubles.
  const bool* boolean() const { return std::get_if<bool>(&value_); }
  const std::int64_t* integer() const { return std::get_if<std::int64_t>(&value_); }
  const double* real() const { return std::get_if<double>(&value_); }
  const std::string* string() const { return std::get_if<std::string>(&value_); }
  const Array* array() const { return std::get_if<Array>(&value_); }
  const Object* object() const { return std::get_if<Object>(&value_); }
  Array* array() { return std::get_if<Array>(&value_); }
  Object* object() { return std::get_if<Object>(&value_); }
  // Member `key` of an object; null pointer when absent or when this is no object. Linear in the number of members.
  const Json* find(std::string_view key) const;
  // "null", "a boolean", "a number", "a string", "a list", "an object": for messages.
  const char* type_name() const;

 private:
  std::variant<std::nullptr_t, bool, std::int64_t, double, std::string, Array, Object> value_ = nullptr;
};

// A scalar as it stands in the file, for one-line messages; what it is otherwise.
std::string shown(const Json& value);

// Throws JsonError that says what and at which byte.
Json parse_json(std::string_view text);

}  // namespace stagecoach
