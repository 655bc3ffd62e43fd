// What the program says on standard error: one line each, from one rank. Messages start with "stagecoach: ", warnings
// with "stagecoach warning: ".
#pragma once

#include <string>

namespace stagecoach {

enum class LogLevel { kQuiet, kNormal, kVerbose };  // quiet: errors only; verbose: also what was chosen and why

void set_up_log(LogLevel level);
void log_error(const std::string& message);
void log_warning(const std::string& message);
void log_note(const std::string& message);     // normal and up
void log_verbose(const std::string& message);  // verbose only

}  // namespace stagecoach
