// What the program says on standard error: one line each, from one rank. Messages start with "stagecoach: ", warnings
// with "stagecoach warning: ".
#pragma once

#include <chrono>
#include <string>

namespace stagecoach {

enum class LogLevel { kQuiet, kNormal, kVerbose };  // quiet: errors only; verbose: also what was chosen and why

void set_up_log(LogLevel level);
void log_error(const std::string& message);
void log_warning(const std::string& message);
void log_note(const std::string& message);     // normal and up
void log_verbose(const std::string& message);  // verbose only

// What goes on now. On a terminal a line that redraws itself a few times a second and disappears with the object;
// where standard error goes elsewhere, a log, a note of its own every `log_every`, the first one that long after the
// start. Silent when `enabled` is false. One thread at a time.
class StatusLine {
 public:
  explicit StatusLine(bool enabled, std::chrono::milliseconds log_every = std::chrono::minutes(1));
  ~StatusLine();
  StatusLine(const StatusLine&) = delete;
  StatusLine& operator=(const StatusLine&) = delete;
  void update(const std::string& text);

 private:
  bool enabled_;
  bool redraws_;
  std::chrono::milliseconds interval_;
  bool shown_ = false;  // something stands on the terminal
  std::chrono::steady_clock::time_point next_;
};

}  // namespace stagecoach
