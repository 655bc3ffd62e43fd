// How a backend lays out memory and what it takes for itself: arithmetic without the device, so that a run can be
// planned, to the byte, where the device is not.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/tensor.hpp"

namespace stagecoach {

// The largest that the operations of one stage get to see.
struct OperationLimits {
  std::int64_t rows = 0;     // of any operation
  std::int64_t columns = 0;  // of an input of linear
  DType weights = DType::kFloat32;
  std::int32_t n_head = 0;
  std::int32_t head_dim = 0;
  std::int64_t table_words = 0;  // page numbers of one set_rows
  std::int64_t logits_rows = 0;  // gathered and summarised at once; 0 where no tokens are picked
  std::int64_t vocab = 0;
  std::int64_t parts = 0;  // of one attention_parts, and numbers of one merge_parts; 0 where attention is whole
};

class MemoryLayout {
 public:
  virtual ~MemoryLayout() = default;

  // What `x` and `out` of linear, `out` of layer_norm, `qkv` and `out` of attention should be for weights of `weights`,
  // where they are not float32: float32, or 16 bits where products take their inputs so.
  virtual DType activation_dtype([[maybe_unused]] DType weights) const { return DType::kFloat32; }
  virtual std::int64_t matrix_bytes(std::int64_t in, std::int64_t out, DType dtype) const = 0;
  virtual std::int64_t kv_page_bytes(std::int32_t n_head, std::int32_t head_dim, DType dtype) const = 0;
  // All that a backend allocates for itself, once `reserve` has been called with these limits.
  virtual std::int64_t own_bytes(const OperationLimits& limits) const = 0;
  // What load_panels allocates and lets go while it makes a matrix of `dtype` from panels of `stored`, beside what
  // own_bytes says.
  virtual std::int64_t staging_bytes(std::int64_t, std::int64_t, [[maybe_unused]] DType stored,
                                     [[maybe_unused]] DType dtype) const {
    return 0;
  }
  // Allocations count as multiples of this.
  virtual std::int64_t unit_bytes() const { return 1; }
  // Whether the host reads and writes buffers directly.
  virtual bool in_host_memory() const { return true; }
  // Whether matrices lie there as weight_layout.hpp packs them. Then Matrix::storage may be memory of someone else's,
  // from a multiple of 64 bytes on, that has or gets the panels; operations only read it.
  virtual bool has_panels() const { return false; }
};

std::unique_ptr<MemoryLayout> reference_layout();
std::unique_ptr<MemoryLayout> cpu_layout(int threads);
// Of a backend with a pool of `pool_bytes`.
std::unique_ptr<MemoryLayout> cuda_layout(std::int64_t pool_bytes);

}  // namespace stagecoach
