// Command lines for tests: parsed with a run file of the test's own.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "launch/command_line.hpp"

namespace stagecoach::test {

using Words = std::vector<std::string>;

// Options of `words`, where --config names are ignored and `yaml` is what the run file says.
inline std::variant<Options, HelpText> parse(const Words& words, const std::string& yaml = "") {
  return parse_command_line(words, {"CPU: AVX2", "CUDA: no"},
                            [&](const std::string& path) { return parse_run_file(yaml, path); });
}

inline Options options_of(const Words& words, const std::string& yaml = "") {
  return std::get<Options>(parse(words, yaml));
}

// `generate --model m --prompt p` and `more`.
inline Words generate(const Words& more) {
  Words words = {"generate", "--model", "m", "--prompt", "p"};
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

inline std::string error_of(const Words& words, const std::string& yaml = "") {
  try {
    parse(words, yaml);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace stagecoach::test
