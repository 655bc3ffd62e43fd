// How a KV page lies in device memory: (2, n_head, kPagePositions, padded_dim), K before V, contiguous. The positions
// of one head are one contiguous tile, and each position of a tile begins at a multiple of 16 bytes. Whoever writes a
// position writes zeros into its columns from head_dim to padded_dim; columns of positions that were never written may
// hold anything.
#pragma once

#include <cstdint>

#include "kernels/backend.hpp"

namespace stagecoach::cuda {

inline constexpr std::int32_t kDimAlignment = 8;
inline constexpr std::int32_t kMaxHeadDim = 256;

constexpr std::int32_t padded_dim(std::int32_t head_dim) {
  return (head_dim + kDimAlignment - 1) / kDimAlignment * kDimAlignment;
}

struct KvLayout {
  std::int32_t n_head = 0;
  std::int32_t head_dim = 0;
  std::int32_t padded_dim = 0;
  std::int32_t element_bytes = 0;

  constexpr std::int64_t position_bytes() const { return std::int64_t{padded_dim} * element_bytes; }
  constexpr std::int64_t tile_bytes() const { return kPagePositions * position_bytes(); }
  constexpr std::int64_t page_bytes() const { return 2 * n_head * tile_bytes(); }
  // Byte offset from KvPages::base of a head's K (which = 0) or V (which = 1).
  constexpr std::int64_t tile(std::int32_t page, std::int32_t which, std::int32_t head) const {
    return page * page_bytes() + (std::int64_t{which} * n_head + head) * tile_bytes();
  }
};

constexpr KvLayout kv_layout(std::int32_t n_head, std::int32_t head_dim, DType dtype) {
  return {n_head, head_dim, padded_dim(head_dim), static_cast<std::int32_t>(size_of(dtype))};
}

}  // namespace stagecoach::cuda
