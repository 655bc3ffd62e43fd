// Any bytes: a JsonError of one printable line, or a tree that, written out again, parses to the same tree.
#include <fmt/format.h>

#include "runtime/json.hpp"
#include "runtime/results.hpp"
#include "tests/fuzz/fuzz.hpp"

namespace {

using stagecoach::Json;

std::string written(const Json& value) {
  if (const bool* boolean = value.boolean()) return *boolean ? "true" : "false";
  if (const std::int64_t* integer = value.integer()) return fmt::format("{}", *integer);
  if (const double* real = value.real()) {
    std::string number = fmt::format("{}", *real);
    if (number.find_first_of(".e") == std::string::npos) number += ".0";  // stays a double
    return number;
  }
  if (const std::string* text = value.string()) return stagecoach::json_string(*text);
  std::string out;
  if (const Json::Array* array = value.array()) {
    for (const Json& item : *array) out += (out.empty() ? "" : ",") + written(item);
    return "[" + out + "]";
  }
  if (const Json::Object* object = value.object()) {
    for (const auto& [key, item] : *object) {
      out += (out.empty() ? "" : ",") + stagecoach::json_string(key) + ":" + written(item);
    }
    return "{" + out + "}";
  }
  return "null";
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const std::string once = written(stagecoach::parse_json(stagecoach::fuzz::text_of(data, size)));
    try {
      stagecoach::fuzz::require(written(stagecoach::parse_json(once)) == once);
    } catch (const stagecoach::JsonError&) {
      std::abort();
    }
  } catch (const stagecoach::JsonError& error) {
    stagecoach::fuzz::require_plain(error.what());
  }
  return 0;
}
