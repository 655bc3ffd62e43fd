#include "launch/time_limit.hpp"

#include <unistd.h>

#include <atomic>
#include <csignal>
#include <utility>

namespace stagecoach {
namespace {

std::string last_words;  // not changed while the alarm is set

void on_alarm(int) {
  static_cast<void>(!::write(STDERR_FILENO, last_words.data(), last_words.size()));
  ::_exit(1);
}

}  // namespace

TimeLimit::TimeLimit(unsigned seconds, std::string message) {
  last_words = "stagecoach: " + std::move(message) + "\n";
  std::signal(SIGALRM, on_alarm);
  ::alarm(seconds);
}

TimeLimit::~TimeLimit() {
  ::alarm(0);
  std::signal(SIGALRM, SIG_DFL);
}

}  // namespace stagecoach
