#include "launch/machine.hpp"

#include <fmt/format.h>
#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string>

namespace stagecoach {
namespace {

std::optional<std::int64_t> number_in(const std::string& path) {
  std::ifstream file(path);
  std::int64_t value = 0;
  if (file >> value) return value;
  return std::nullopt;  // absent, or the word "max"
}

std::int64_t free_memory_bytes() {
  std::ifstream file("/proc/meminfo");
  std::string key, unit;
  std::int64_t kib = 0;
  while (file >> key >> kib >> unit) {
    if (key == "MemAvailable:") return kib * 1024;
  }
  return sysconf(_SC_AVPHYS_PAGES) * static_cast<std::int64_t>(sysconf(_SC_PAGESIZE));
}

// Values of a file of lines "KEY VALUE...", 0 for keys that are not there.
std::int64_t sum_of_keys(const std::string& path, std::initializer_list<std::string> keys) {
  std::ifstream file(path);
  std::int64_t sum = 0;
  for (std::string line; std::getline(file, line);) {
    const std::size_t space = line.find_first_of(" \t");
    if (space == std::string::npos || std::ranges::find(keys, line.substr(0, space)) == keys.end()) continue;
    sum += std::strtoll(line.c_str() + space, nullptr, 10);
  }
  return sum;
}

// Path of this process's cgroup below the mount of `controller` ("" for version 2), from /proc/self/cgroup.
std::string cgroup_path(const std::string& controller) {
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const std::size_t first = line.find(':');
    const std::size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    if (line.substr(first + 1, second - first - 1) == controller) return line.substr(second + 1);
  }
  return "";
}

// What the limit of the cgroup (version 2 or 1) or of any of its parents leaves. Its usage counts files that were read,
// which make room.
std::int64_t cgroup_room_bytes() {
  struct Version {
    const char *controller, *mount, *limit, *usage, *stat_prefix;
  };
  std::int64_t room = std::numeric_limits<std::int64_t>::max();
  for (const Version v :
       {Version{"", "/sys/fs/cgroup", "memory.max", "memory.current", ""},
        Version{"memory", "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"}}) {
    std::string path = cgroup_path(v.controller);
    while (true) {
      const std::string folder = std::string(v.mount) + (path == "/" ? "" : path) + "/";
      const auto limit = number_in(folder + v.limit);
      const auto usage = number_in(folder + v.usage);
      if (limit && usage) {
        const std::string prefix = v.stat_prefix;
        const std::int64_t files =
            sum_of_keys(folder + "memory.stat", {prefix + "inactive_file", prefix + "active_file"});
        room = std::min(room, *limit - std::max<std::int64_t>(0, *usage - files));
      }
      const std::size_t slash = path.rfind('/');
      if (slash == std::string::npos || path.empty()) break;
      path.resize(slash);
    }
  }
  return std::max<std::int64_t>(0, room);
}

}  // namespace

std::int32_t default_threads(std::int32_t local_ranks) {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  const long online = std::max(1L, sysconf(_SC_NPROCESSORS_ONLN));
  long mine = online;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) mine = std::max(1, CPU_COUNT(&allowed));
  // A mask smaller than the host is a binding made for this rank; the whole host is shared with the others.
  const long threads = mine < online ? mine : std::max(1L, online / std::max(1, local_ranks));
  return static_cast<std::int32_t>(threads);
}

std::int64_t available_memory_bytes() {
  return std::min(free_memory_bytes(), cgroup_room_bytes());
}

ProcessMemory process_memory() {
  const std::string status = "/proc/self/status";
  return {sum_of_keys(status, {"VmHWM:"}) * 1024, sum_of_keys(status, {"VmData:"}) * 1024};
}

std::optional<std::int64_t> data_limit_room_bytes() {
  rlimit limit = {};
  if (getrlimit(RLIMIT_DATA, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return std::nullopt;
  const auto most = static_cast<std::int64_t>(std::min<rlim_t>(limit.rlim_cur, INT64_MAX));
  return std::max<std::int64_t>(0, most - process_memory().data_bytes);
}

void use_small_thread_stacks() {
  pthread_attr_t attributes;
  if (pthread_attr_init(&attributes) != 0) return;
  if (pthread_attr_setstacksize(&attributes, kThreadStackBytes) == 0) pthread_setattr_default_np(&attributes);
  pthread_attr_destroy(&attributes);
}

}  // namespace stagecoach
