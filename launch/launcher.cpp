#include "launch/launcher.hpp"

#include <fmt/format.h>
#include <poll.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <fstream>
#include <sstream>
#include <string>
#include <string_view>

namespace stagecoach {
namespace {

constexpr int kMostParents = 8;  // shells and the like between mpirun and its rank
constexpr int kPatienceMs = 10000;

struct Process {
  std::string name;
  pid_t parent = 0;
};

// "7 (mpirun) S 6 ...", where the name may hold anything.
Process process_of(pid_t pid) {
  std::ifstream file(fmt::format("/proc/{}/stat", pid));
  std::string text;
  std::getline(file, text);
  const std::size_t open = text.find('('), close = text.rfind(')');
  if (open == std::string::npos || close == std::string::npos) return {};
  Process process{text.substr(open + 1, close - open - 1)};
  std::string state;
  std::istringstream(text.substr(close + 1)) >> state >> process.parent;
  return process;
}

bool is_mpirun(std::string_view name) {
  constexpr std::array<std::string_view, 4> kNames = {"mpirun", "mpiexec", "orterun", "mpirun.openmpi"};
  return std::ranges::find(kNames, name) != kNames.end();
}

}  // namespace

Launcher::Launcher() {
  pid_t pid = ::getppid();
  for (int i = 0; i < kMostParents && pid > 1; ++i) {
    const Process process = process_of(pid);
    if (is_mpirun(process.name)) {
      handle_ = static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
      return;
    }
    pid = process.parent;
  }
}

Launcher::~Launcher() {
  if (handle_ >= 0) ::close(handle_);
}

// The child makes system calls alone: other threads of the parent may have held any lock. It keeps nothing open that
// mpirun waits to see closed.
void Launcher::end_if_stuck() const {
  if (handle_ < 0) return;
  const pid_t child = ::fork();
  if (child > 0) ::waitpid(child, nullptr, 0);
  if (child != 0) return;
  if (::fork() != 0) ::_exit(0);
  ::setsid();
  const auto kept = static_cast<unsigned>(handle_);
  if (kept > 0) ::syscall(SYS_close_range, 0U, kept - 1, 0U);
  ::syscall(SYS_close_range, kept + 1, ~0U, 0U);
  pollfd ended = {handle_, POLLIN, 0};
  if (::poll(&ended, 1, kPatienceMs) == 0) ::syscall(SYS_pidfd_send_signal, handle_, SIGKILL, nullptr, 0);
  ::_exit(0);
}

}  // namespace stagecoach
