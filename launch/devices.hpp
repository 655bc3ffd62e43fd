// Which device each stage of this process computes on, and how much of a GPU's memory it may take.
//
// Ranks find their GPUs by their number on their host; CUDA_VISIBLE_DEVICES and launchers that show each rank a GPU of
// its own are respected, because what counts is which GPU it is. Two stages on one GPU are refused unless the GPU was
// named (cuda:N).
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/backend.hpp"
#include "launch/command_line.hpp"
#include "launch/world.hpp"
#include "partition/plan.hpp"

namespace stagecoach {

// Most prompt tokens of a microbatch, unless said otherwise.
inline constexpr std::int32_t kDefaultChunkTokens = 256;
inline constexpr std::int32_t kDefaultCudaChunkTokens = 2048;  // GPUs need more rows at once to be busy

// The CPU backend's name of it.
Simd simd_of(SimdChoice choice);

struct StageDevice {
  bool cuda = false;
  std::int32_t index = 0;       // of cuda_devices, when `cuda`
  std::int64_t pool_bytes = 0;  // of the device's memory, when `cuda`
  std::string pci;              // which GPU of its host it is, when `cuda`
  bool shared = false;          // other stages compute there, too
};

// One for each of `wishes`, the stages of this process in order. Collective: ranks look at the same time, so that those
// who share a GPU divide what is free, by their `budgets` where they have some. Ends all ranks through World::agree
// with UsageError or DeviceError.
std::vector<StageDevice> choose_devices(const World& world, std::span<const DeviceWish> wishes,
                                        std::span<const std::optional<std::int64_t>> budgets);

}  // namespace stagecoach
