// How much memory each stage of the job may take, measured and agreed on by all ranks.
//
// A stage with a budget may take that, everything counted: what code, MPI, libraries and threads take is measured here,
// and what is left is for its buffers. Without one the ranks of a host, and all stages of a process together, share
// what is free. Nobody is promised what the host does not have.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "launch/devices.hpp"
#include "launch/fit.hpp"
#include "launch/world.hpp"

namespace stagecoach {

// Of the stages of this process.
struct RoomRequest {
  std::span<const StageDevice> devices;
  std::span<const std::optional<std::int64_t>> budgets;
  std::int32_t threads = 1;       // of each
  std::int64_t prompt_bytes = 0;  // that this process is going to take beside its stages
};

// What this process takes, or soon will, beside the buffers of its stages and prompts: code, libraries, threads, as
// measured now.
std::int64_t process_bytes(std::int64_t stages, std::int32_t threads);

// Of all stages of the job. Collective; call it when libraries are set up and before weights are read.
std::vector<StageRoom> find_rooms(const World& world, const RoomRequest& mine);

}  // namespace stagecoach
