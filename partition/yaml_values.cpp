#include "partition/yaml_values.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <system_error>

#include "partition/model.hpp"
#include "partition/wording.hpp"

namespace stagecoach {

void fail(const YamlNode& at, std::string_view key, const std::string& what) {
  throw PlanError(fmt::format("{}: {}: {}", at.where, key, what));
}

std::string kind_of(const YamlNode& node) {
  switch (node.kind) {
    case YamlNode::Kind::kNull:
      return "nothing";
    case YamlNode::Kind::kScalar:
      return (node.quoted ? "the text \"" : "") + shown(node.scalar) + (node.quoted ? "\"" : "");
    case YamlNode::Kind::kList:
      return "a list";
    case YamlNode::Kind::kMap:
      return "a group of keys";
  }
  return "?";
}

std::optional<std::int64_t> whole(const YamlNode& node) {
  if (node.kind != YamlNode::Kind::kScalar || node.quoted) return std::nullopt;
  std::int64_t value = 0;
  const char* end = node.scalar.data() + node.scalar.size();
  const auto [rest, error] = std::from_chars(node.scalar.data(), end, value);
  if (error != std::errc() || rest != end) return std::nullopt;
  return value;
}

std::optional<double> number(const YamlNode& node) {
  if (node.kind != YamlNode::Kind::kScalar || node.quoted) return std::nullopt;
  double value = 0;
  const char* end = node.scalar.data() + node.scalar.size();
  const auto [rest, error] = std::from_chars(node.scalar.data(), end, value);
  if (error != std::errc() || rest != end || !std::isfinite(value)) return std::nullopt;
  return value;
}

bool is_word(const YamlNode& node, std::string_view word) {
  return node.kind == YamlNode::Kind::kScalar && node.scalar == word;
}

const std::string& text_of(const YamlNode& node, std::string_view key) {
  if (node.kind != YamlNode::Kind::kScalar)
    fail(node, key, kind_of(node) + " is no text; write a value after the colon");
  return node.scalar;
}

std::string yaml_text(std::string_view text) {
  const auto is_control = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; };
  if (std::ranges::none_of(text, is_control)) {
    std::string result = "'";
    for (const char c : text) result += c == '\'' ? std::string("''") : std::string(1, c);
    return result + "'";
  }
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      result += '\\';
      result += c;
    } else {
      result += is_control(c) ? fmt::format("\\x{:02x}", static_cast<unsigned char>(c)) : std::string(1, c);
    }
  }
  return result + "\"";
}

}  // namespace stagecoach
