// What the golden tests read their committed data with.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "runtime/json.hpp"

namespace stagecoach::test {

inline Json read_json(const std::filesystem::path& path) {
  std::ifstream file(path);
  return parse_json(std::string{std::istreambuf_iterator<char>(file), {}});
}

inline double number(const Json& value) {
  if (const double* real = value.real()) return *real;
  return static_cast<double>(*value.integer());
}

inline std::vector<std::int32_t> ids(const Json& list) {
  std::vector<std::int32_t> result;
  for (const Json& id : *list.array()) result.push_back(static_cast<std::int32_t>(*id.integer()));
  return result;
}

}  // namespace stagecoach::test
