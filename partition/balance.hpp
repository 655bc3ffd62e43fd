// Contiguous blocks to stages so that the slowest stage is as fast as can be: exact, by dynamic programming.
//
// Stage s of the result runs on the s-th of the devices used; which of them are used is part of the answer where fewer
// stages are asked for than there are devices. Knows costs and budgets as functions, not what they are made of.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "partition/model.hpp"

namespace stagecoach {

struct BalanceProblem {
  std::int32_t blocks = 0;
  std::int32_t devices = 0;
  std::int32_t stages = 0;  // 1 to devices
  // Seconds of these blocks on a device, and whether they fit in its memory. Blocks are alike: the answers depend on
  // how many they are and on whether the first and the last one are among them. More blocks take no less time and
  // memory.
  std::function<double(std::int32_t device, BlockRange)> seconds;
  std::function<bool(std::int32_t device, BlockRange)> fits;
};

struct Balance {
  std::vector<BlockRange> stages;
  std::vector<std::int32_t> devices;  // of each stage, ascending
  double slowest_s = 0.0;
};

// Nothing when no cut fits.
std::optional<Balance> balance(const BalanceProblem& problem);

// Cuts that others make: blocks as even as can be over the first `stages` devices, and blocks in proportion to
// weights[device] (their memory, say), each at least one. They need not fit.
std::vector<BlockRange> proportional_cut(std::int32_t blocks, const std::vector<double>& weights);

}  // namespace stagecoach
