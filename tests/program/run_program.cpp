#include "tests/program/run_program.hpp"

#include <fmt/format.h>
#include <sys/mount.h>
#include <sys/wait.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iterator>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string_view>
#include <system_error>
#include <thread>

namespace stagecoach::test {

int Ended::messages() const {
  std::istringstream lines(err);
  int count = 0;
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("stagecoach: ")) ++count;
  }
  return count;
}

double on_this_machine(double seconds) {
  double tasks = 0.0;
  if (getloadavg(&tasks, 1) < 1) return seconds;
  return seconds * std::clamp(tasks / std::max(1U, std::thread::hardware_concurrency()), 1.0, 6.0);
}

namespace {

// In front of mpirun, which the shell becomes: as launch/mpirun does it.
constexpr std::string_view kWatcher = R"((
  for ((stuck = 0; stuck < 5; )); do
    sleep 2
    kill -0 $$ || exit
    states=$(ps --ppid $$ -o stat=,comm= | grep ' stagecoach')
    if [[ -n $states ]] && ! grep -qv '^Z' <<< "$states"; then ((++stuck)); else stuck=0; fi
  done
  touch {stuck}
  kill -KILL $$
) > /dev/null 2>&1 &
)";

Ended start_and_wait(const char* program, int ranks, const std::string& arguments, int limit_s,
                     const std::string& before) {
  const ScratchFolder scratch;
  const std::string launcher = ranks == 0 ? "" : fmt::format("{} -n {} ", STAGECOACH_MPIEXEC, ranks);
  // The program's own redirections stand last and win.
  std::string limit = fmt::format("timeout -k 5 {} ", limit_s);
  std::string watcher;
  if (limit_s == 0) {
    limit.clear();
    if (ranks > 0) watcher = fmt::format(kWatcher, fmt::arg("stuck", scratch / "stuck"));
  }
  write_file(scratch / "command", fmt::format("{}{}exec {}{}{} >{} 2>{} {}\n", watcher, before, limit, launcher,
                                              program, scratch / "out", scratch / "err", arguments));
  const std::string command = "bash " + (scratch / "command");
  const auto start = std::chrono::steady_clock::now();
  const int code = std::system(command.c_str());
  Ended ended;
  ended.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  ended.status = WIFEXITED(code) ? WEXITSTATUS(code) : 128 + WTERMSIG(code);
  ended.out = read_file(scratch / "out");
  ended.err = read_file(scratch / "err");
  ended.mpirun_stuck = std::filesystem::exists(scratch / "stuck");
  return ended;
}

}  // namespace

Ended run_program(int ranks, const std::string& arguments, int limit_s, const std::string& before) {
  return start_and_wait(STAGECOACH_PROGRAM, ranks, arguments, limit_s, before);
}

Ended run_emulated(int ranks, const std::string& arguments, int limit_s, const std::string& machine) {
  const std::string before = machine.empty() ? "" : fmt::format("export STAGECOACH_EMULATION='{}'\n", machine);
  return start_and_wait(STAGECOACH_EMULATED_PROGRAM, ranks, arguments, limit_s, before);
}

Ended run_each(int ranks, const std::string& rank_does, const std::string& arguments, const std::string& options,
               const std::string& program) {
  const ScratchFolder folder;
  write_file(folder / "rank", "rank=$OMPI_COMM_WORLD_RANK\n" + rank_does + "\nexec \"$@\"\n");
  const std::string launcher = fmt::format("{}/launch/mpirun {} -n {} bash {} {}", STAGECOACH_SOURCE_DIR, options,
                                           ranks, folder / "rank", program.empty() ? STAGECOACH_PROGRAM : program);
  return start_and_wait(launcher.c_str(), 0, arguments, 60, "");
}

std::vector<pid_t> ranks_with(const std::string& tag, int ranks) {
  std::vector<pid_t> found(static_cast<std::size_t>(ranks), 0);
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string pid = entry.path().filename();
    if (pid.find_first_not_of("0123456789") != std::string::npos) continue;
    std::string command, environment;
    try {
      command = read_file(entry.path() / "cmdline");
      environment = read_file(entry.path() / "environ");
    } catch (const std::exception&) {  // it has just ended
      continue;
    }
    const std::size_t at = environment.find("OMPI_COMM_WORLD_RANK=");
    if (!command.starts_with(STAGECOACH_PROGRAM) || command.find(tag) == std::string::npos || at == std::string::npos)
      continue;
    found.at(static_cast<std::size_t>(std::stoi(environment.substr(at + 21)))) = std::stoi(pid);
  }
  return found;
}

bool all_gone(const std::string& output) {
  const std::string look = fmt::format("pgrep -f '^[^ ]*stagecoach[^ ]* [a-z]+ .*{}'", output);
  for (int i = 0; i < 100; ++i) {
    if (std::system((look + " >/dev/null").c_str()) != 0) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  static_cast<void>(std::system(("ps -o pid,ppid,stat,etimes,wchan:24,args -p $(" + look + " -d,)").c_str()));
  return false;
}

ScratchFolder::ScratchFolder() {
  std::random_device random;
  path_ = std::filesystem::temp_directory_path() / fmt::format("stagecoach-test-{:08x}{:08x}", random(), random());
  std::filesystem::create_directories(path_);
}
ScratchFolder::~ScratchFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

void write_file(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  if (!(file << text) || !file.flush()) throw std::runtime_error("cannot write " + path);
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

SmallDisk::SmallDisk(const std::string& path, int kib) : path_(path) {
  std::filesystem::create_directory(path_);
  const std::string size = "size=" + std::to_string(kib) + "k";
  mounted_ = ::mount("none", path_.c_str(), "tmpfs", 0, size.c_str()) == 0;
}

SmallDisk::~SmallDisk() {
  if (mounted_) ::umount2(path_.c_str(), MNT_DETACH);
}

void SmallDisk::grow(int kib) const {
  const std::string size = "size=" + std::to_string(kib) + "k";
  if (mounted_) ::mount("none", path_.c_str(), "tmpfs", MS_REMOUNT, size.c_str());
}

}  // namespace stagecoach::test
