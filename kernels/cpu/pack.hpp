// Packs host arrays of weights into panels (weight_layout.hpp), on all threads, and panels into others.
#pragma once

#include "kernels/cpu/kernels.hpp"
#include "kernels/cpu/thread_pool.hpp"
#include "kernels/weight_layout.hpp"

namespace stagecoach::cpu {

inline PackedMatrix packed(const Matrix& matrix) {
  return {{matrix.in, matrix.out, matrix.dtype}, static_cast<std::byte*>(matrix.storage.data())};
}

// host.rows rows of an (in, out) or (out, in) array, from row `first_row` of it on; shapes were checked.
void pack_rows(ThreadPool& pool, const Kernels& kernels, const PackedMatrix& matrix, WeightLayout layout,
               std::int64_t first_row, Tensor host);
// One floating-point panel of `from` as one of the same matrix in `to`.
void convert_panel(const Kernels& kernels, const PackedLayout& from, const std::byte* panel, DType to,
                   std::byte* result);
// Fills `matrix` with panels that hold `stored`: see Backend::load_panels.
void load_panels(ThreadPool& pool, const Kernels& kernels, const PackedMatrix& matrix, DType stored,
                 const PanelReader& read);

}  // namespace stagecoach::cpu
