// How a backend's memory looks to the byte model (partition/stage_bytes.hpp), which knows no backends.
#pragma once

#include "kernels/memory_layout.hpp"
#include "partition/stage_bytes.hpp"

namespace stagecoach {

// For weights of `weights` and pages of `kv`, of `model`. `layout` must outlive the result.
DeviceLayout device_layout(const MemoryLayout& layout, const ModelConfig& model, DType weights, DType kv);

// The same limits in the words of backends.
OperationLimits operation_limits(const StageOperations& operations, const ModelConfig& model, DType weights);

}  // namespace stagecoach
