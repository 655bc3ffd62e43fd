#include "launch/log.hpp"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <cstdio>
#include <memory>

namespace stagecoach {
namespace {

// One line per message, without a word to the terminal, whatever a message quotes.
std::string one_line(std::string text) {
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  }
  return text;
}

}  // namespace

void set_up_log(LogLevel level) {
  spdlog::set_default_logger(
      std::make_shared<spdlog::logger>("stagecoach", std::make_shared<spdlog::sinks::stderr_sink_mt>()));
  spdlog::set_pattern("%v");
  switch (level) {
    case LogLevel::kQuiet:
      spdlog::set_level(spdlog::level::err);
      break;
    case LogLevel::kNormal:
      spdlog::set_level(spdlog::level::info);
      break;
    case LogLevel::kVerbose:
      spdlog::set_level(spdlog::level::debug);
      break;
  }
}

void log_error(const std::string& message) {
  spdlog::error("stagecoach: {}", one_line(message));
}
void log_warning(const std::string& message) {
  spdlog::warn("stagecoach warning: {}", one_line(message));
}
void log_note(const std::string& message) {
  spdlog::info("stagecoach: {}", one_line(message));
}
void log_verbose(const std::string& message) {
  spdlog::debug("stagecoach: {}", one_line(message));
}

StatusLine::StatusLine(bool enabled, std::chrono::milliseconds log_every)
    : enabled_(enabled),
      redraws_(isatty(STDERR_FILENO) != 0),
      interval_(redraws_ ? std::chrono::milliseconds(200) : log_every),
      next_(std::chrono::steady_clock::now() + (redraws_ ? std::chrono::milliseconds(0) : interval_)) {}

StatusLine::~StatusLine() {
  if (shown_) std::fputs("\r\033[K", stderr);
}

void StatusLine::update(const std::string& text) {
  if (!enabled_) return;
  const auto now = std::chrono::steady_clock::now();
  if (now < next_) return;
  next_ = now + interval_;
  if (!redraws_) return log_note(text);
  shown_ = true;
  std::fputs(("\r\033[Kstagecoach: " + text).c_str(), stderr);
}

}  // namespace stagecoach
