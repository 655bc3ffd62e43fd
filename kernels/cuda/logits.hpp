// Summaries of rows of logits on the device, as kernels/logits.hpp defines them. Shapes were checked.
//
// Queries travel in one piece: a RowQuery per row, then for each row with a penalty a bit per token. A row's sums are
// taken in an order that depends on its length alone.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/logits.hpp"

namespace stagecoach::cuda {

struct RowQuery {
  double penalty = 1.0;
  std::int64_t bits = -1;    // where the row's bits begin, in words after the queries; -1 without a penalty
  std::int64_t summary = 0;  // where its summary begins, in bytes
  std::int32_t top = 0;
  std::int32_t wanted = 0;
};

// The queries of rows of `cols` logits in the form that the device takes.
std::size_t packed_bytes(std::span<const LogitsQuery> queries, std::int64_t cols);
void pack(std::span<const LogitsQuery> queries, std::int64_t cols, std::byte* to);

// `packed` lies on the device.
void summarize_logits(cudaStream_t stream, Tensor logits, const void* packed, void* out);

}  // namespace stagecoach::cuda
