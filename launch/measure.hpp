// Measures a device by running a few blocks of the model on it: how long they take by number of rows and of keys, and
// the LM head by number of rows.
#pragma once

#include <functional>

#include "kernels/profiling.hpp"
#include "partition/device_speed.hpp"
#include "runtime/transport.hpp"
#include "runtime/weight_source.hpp"

namespace stagecoach {

struct MeasureOptions {
  DType dtype = DType::kFloat32;
  DType kv_dtype = DType::kFloat32;
  std::int32_t most_rows = 256;
  // Called before every point: ranks that will run together are measured together, since they share what they share.
  std::function<void()> in_step;
};
// Loads the last blocks of the model with its head. The backend takes the time of its operations.
DeviceSpeed measure_device(ProfilingBackend& backend, const Model& model, const MeasureOptions& options);

// Between stages 0 and 1, called on both; the answer is stage 0's. `wait` is called while waiting.
LinkSpeed measure_link(std::int32_t stage, Mailbox& mailbox, Transport& transport, Backend& backend,
                       std::int64_t row_values, const std::function<void()>& wait);

}  // namespace stagecoach
