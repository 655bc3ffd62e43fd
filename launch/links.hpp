// How the ranks of this job hand rows to each other: chooses NCCL or MPI, connects neighbours and tests every link
// before anything is loaded.
//
// All functions but the last are collective: every rank makes the same calls.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/backend.hpp"
#include "launch/command_line.hpp"
#include "launch/devices.hpp"
#include "launch/world.hpp"
#include "partition/grid.hpp"
#include "runtime/loopback.hpp"
#include "runtime/transport.hpp"

namespace stagecoach {

namespace cuda {
struct DeviceQueue;
}

// Whether rows go from GPU to GPU over NCCL. "auto": where every rank has a GPU of its own and this build has NCCL.
// Ends all ranks through World::agree with UsageError when NCCL was asked for and cannot be.
bool choose_nccl(const World& world, TransportChoice choice, const Grid& grid, std::span<const StageDevice> devices);

struct LinkSetUp {
  Grid grid;  // of the ranks
  double timeout_s = 60.0;
  Backend* backend = nullptr;
  const StageDevice* device = nullptr;
  const cuda::DeviceQueue* queue = nullptr;  // of the backend, for NCCL; null: MPI
  bool waits_on_device = false;              // see NcclOptions
};

struct Links {
  std::unique_ptr<Mailbox> mailbox;
  std::unique_ptr<Transport> transport;                // null when there is one stage
  std::vector<std::unique_ptr<Transport>> to_shards;  // of its stage, both ways; null for itself
};

// Of this rank's stage. A pair that cannot talk ends the job with one message that names it.
Links connect_stages(const World& world, const LinkSetUp& set_up);
// Of a stage that is a thread of this process, at `place` of the hub.
Links connect_threads(LoopbackHub& hub, const Grid& grid, std::int32_t place, Backend& backend);

}  // namespace stagecoach
