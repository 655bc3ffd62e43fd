#include "launch/interrupt.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <ctime>

namespace stagecoach {
namespace {

constexpr unsigned kGraceSeconds = 8;
constexpr double kDrainSeconds = 3.0;
// One wish may arrive twice: `timeout` signals its child and then the child's process group.
constexpr long kSameWishMs = 500;

// The note; handlers may touch lock-free atomics.
std::atomic<int> noted_signal{0};
std::atomic<bool> noted_from_launcher{false};
std::atomic<long> noted_ms{0};
std::atomic<bool> has_launcher{false};
static_assert(std::atomic<int>::is_always_lock_free && std::atomic<long>::is_always_lock_free &&
              std::atomic<bool>::is_always_lock_free);

long now_ms() {
  timespec now = {};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<long>(now.tv_sec) * 1000 + now.tv_nsec / 1000000;
}

void on_signal(int signal, siginfo_t* info, void*) {
  const bool from_launcher = has_launcher && info->si_code <= 0 && info->si_pid == ::getppid();
  if (noted_signal == 0) {
    noted_from_launcher = from_launcher;
    noted_ms = now_ms();
    noted_signal = signal;
    ::alarm(kGraceSeconds);
    return;
  }
  if (from_launcher) {  // mpirun that ends the job, and will insist
    noted_from_launcher = true;
    return;
  }
  if (now_ms() - noted_ms < kSameWishMs) return;
  std::signal(signal, SIG_DFL);
  ::raise(signal);
}

void on_alarm(int) {
  ::_exit(75);
}

const char* name_of(int signal) {
  return signal == SIGINT ? "SIGINT" : signal == SIGTERM ? "SIGTERM" : "SIGUSR1";
}

}  // namespace

void catch_interrupts(bool under_launcher) {
  has_launcher = under_launcher;
  struct sigaction action = {};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_RESTART;
  sigemptyset(&action.sa_mask);
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) {
    struct sigaction before = {};
    ::sigaction(signal, nullptr, &before);
    // Ignored from outside stays ignored: nohup and the shell's background jobs.
    if ((before.sa_flags & SA_SIGINFO) == 0 && before.sa_handler == SIG_IGN) continue;
    ::sigaction(signal, &action, nullptr);
  }
  std::signal(SIGALRM, on_alarm);
}

std::optional<Interrupt> interrupt() {
  if (noted_signal == 0) return std::nullopt;
  return Interrupt{noted_signal, noted_from_launcher, static_cast<double>(now_ms() - noted_ms) / 1000.0};
}

bool Interrupt::leaves_time() const {
  return seconds_ago < kDrainSeconds && (!from_launcher || signal == SIGUSR1);
}

void throw_interrupted(const Interrupt& interrupt) {
  // mpirun passes USR1 on as it gets it, but TERM is also how it ends a job whose rank has failed and said so.
  if (interrupt.from_launcher && interrupt.signal != SIGUSR1) throw Interrupted("");
  throw Interrupted(fmt::format("interrupted by {}; start the same command again", name_of(interrupt.signal)));
}

void throw_if_interrupted() {
  if (const std::optional<Interrupt> noted = interrupt()) throw_interrupted(*noted);
}

}  // namespace stagecoach
