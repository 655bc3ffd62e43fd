// The rows of the last set_rows as kernels see them. Owns nothing; the backend that uploads them keeps them alive until
// the operations queued on them are done.
#pragma once

#include <cstdint>

namespace stagecoach::cuda {

// All pointers are device memory. A row with a negative position is padding (graphs are captured for padded row
// counts): nothing is appended for it and nobody writes its output.
struct DeviceRows {
  std::int64_t rows = 0;
  const std::int32_t* tokens = nullptr;     // (rows)
  const std::int32_t* positions = nullptr;  // (rows)
  const std::int32_t* sequences = nullptr;  // (rows) index of the row's page table
  const std::int32_t* pages = nullptr;      // (sequences, table_stride)
  std::int64_t table_stride = 0;
};

}  // namespace stagecoach::cuda
