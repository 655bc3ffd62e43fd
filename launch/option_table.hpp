// The one table of options: names, help, defaults, which commands have them, and how a value becomes a field
// of Options.
//
// Run-file keys are the same options with '_' for '-', so a new option needs one entry here and one in the
// table of partition/run_file.cpp (a test compares the two).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "launch/command_line.hpp"

namespace stagecoach {

enum CommandBits : std::uint8_t {
  kForGenerate = 1,
  kForTokenize = 2,
  kForBench = 4,
  kForConvert = 8,
  kForScore = 16,
  kForPlan = 32,
  kForProfile = 64,
  kForSlurm = 128
};

struct OptionSpec {
  std::string_view name;   // without dashes
  std::string_view value;  // "N|auto"; empty for a flag
  std::uint8_t commands;   // CommandBits
  std::string_view group;  // heading in the help
  std::string_view help;   // with the default in brackets
  bool many;               // may be given several times
  // Throws UsageError that begins with the value: "-3 is not a number from 1 to 4096".
  void (*apply)(Options&, const std::string& value);
  char letter = '\0';
};

std::span<const OptionSpec> option_table();
// Of `command`, else of any other, else null: commands may have different options of one name.
const OptionSpec* find_option(std::string_view name, Command command);
constexpr std::uint8_t bit_of(Command command) {
  return static_cast<std::uint8_t>(1U << static_cast<unsigned>(command));
}

}  // namespace stagecoach
