// What this host offers the process: cores it may run on, memory it may take.
#pragma once

#include <cstdint>
#include <string>

namespace stagecoach {

// Compute threads for one of `local_ranks` ranks on this host: the cores that it is bound to, or its share of all.
std::int32_t default_threads(std::int32_t local_ranks);

// Bytes that new allocations on this host may take in all: free memory, or what the cgroup's limit leaves if less.
std::int64_t available_memory_bytes();

// "3.1 GiB", "512 bytes": for messages.
std::string readable_bytes(std::int64_t bytes);

}  // namespace stagecoach
