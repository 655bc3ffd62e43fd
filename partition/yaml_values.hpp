// Values of YAML nodes, and errors that say where they stand: what all readers of YAML share.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "partition/yaml_tree.hpp"

namespace stagecoach {

// Throws PlanError "FILE:LINE:COLUMN: key: what".
[[noreturn]] void fail(const YamlNode& at, std::string_view key, const std::string& what);
// For messages: "a list", or the scalar itself.
std::string kind_of(const YamlNode& node);
// Nothing when the node is no such scalar, or in quotes.
std::optional<std::int64_t> whole(const YamlNode& node);
std::optional<double> number(const YamlNode& node);  // finite
bool is_word(const YamlNode& node, std::string_view word);
// Throws PlanError unless it is a scalar.
const std::string& text_of(const YamlNode& node, std::string_view key);

// `text` in quotes, to be written as a value.
std::string yaml_text(std::string_view text);

}  // namespace stagecoach
