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

// A line on the terminal that redraws itself a few times a second and disappears with the object. Silent when standard
// error is no terminal or when `enabled` is false.
class StatusLine {
 public:
  explicit StatusLine(bool enabled);
  ~StatusLine();
  StatusLine(const StatusLine&) = delete;
  StatusLine& operator=(const StatusLine&) = delete;
  bool enabled() const { return enabled_; }
  void update(const std::string& text);

 private:
  bool enabled_;
  bool shown_ = false;
  std::chrono::steady_clock::time_point last_{};
};

}  // namespace stagecoach
