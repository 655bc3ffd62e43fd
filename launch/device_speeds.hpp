// How fast devices are to the partitioner: as a machine file says, otherwise as some device of their kind.
#pragma once

#include <cstdint>
#include <optional>

#include "kernels/tensor.hpp"
#include "partition/machine.hpp"

namespace stagecoach {

// Of rank `rank`'s device, with weights and pages of these dtypes. Where nothing is known only ratios between stages
// matter.
DeviceSpeed device_speed(const std::optional<Machine>& machine, std::int32_t rank, bool cuda, DType dtype,
                         DType kv_dtype);
// To the next rank; no time at all where nothing is known.
LinkSpeed link_speed(const std::optional<Machine>& machine);

}  // namespace stagecoach
