// YAML as a plain value tree with places, without what run files have no use for: anchors, aliases and tags
// are refused, as are duplicate keys, several documents and deep nesting. Hides yaml-cpp, whose own tree does
// not notice duplicates and forgets where keys stood.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace stagecoach {

struct YamlNode {
  enum class Kind : std::uint8_t { kNull, kScalar, kList, kMap };
  Kind kind = Kind::kNull;
  std::string where;  // "run.yaml:3:7"
  std::string scalar;
  bool quoted = false;          // a scalar in quotes is always text
  std::vector<YamlNode> items;  // of a list; of a map its values
  std::vector<YamlNode> keys;   // of a map, one per item, in file order; scalars
};

// The bytes of a file, a few too many where it is too large. `what` it is, for messages. Throws PlanError.
std::string read_yaml_file(const std::string& path, const char* what);

// Throws PlanError "PATH:LINE:COLUMN: what". A text without a value is kNull.
YamlNode parse_yaml(const std::string& text, const std::string& path);

}  // namespace stagecoach
