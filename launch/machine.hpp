// What this host offers the process: cores it may run on, memory it may take.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>

namespace stagecoach {

// Compute threads for one of `local_ranks` ranks on this host: the cores that it is bound to, or its share of all.
std::int32_t default_threads(std::int32_t local_ranks);

// Bytes that new allocations on this host may take in all: free memory, or what the cgroup's limit leaves if less.
std::int64_t available_memory_bytes();

// What this process takes, as the system counts it. Zeros where it does not say.
struct ProcessMemory {
  std::int64_t peak_resident_bytes = 0;
  std::int64_t data_bytes = 0;  // private memory that may be written, touched or not: what `prlimit --data` limits

  // Enough for the process as it is, whichever way memory is limited.
  std::int64_t bytes() const { return std::max(peak_resident_bytes, data_bytes); }
};
ProcessMemory process_memory();
// What `prlimit --data` leaves this process, if there is such a limit.
std::optional<std::int64_t> data_limit_room_bytes();

// Threads that start from now on get stacks of this size, of which most is never touched but counts as data.
inline constexpr std::int64_t kThreadStackBytes = 1 << 20;
void use_small_thread_stacks();

}  // namespace stagecoach
