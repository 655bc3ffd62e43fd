// Packs host arrays of weights into panels (weight_layout.hpp), on all threads, and panels into others.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/kernels.hpp"
#include "kernels/cpu/thread_pool.hpp"
#include "kernels/host_memory.hpp"
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
void load_panels(ThreadPool& pool, const Kernels& kernels, HostMemory& memory, const PackedMatrix& matrix, DType stored,
                 const PanelReader& read);
// Bytes that each thread takes for it meanwhile: a panel (and at least what makes it begin with a page), unless panels
// are read straight to their place.
constexpr std::int64_t staging_bytes(const PackedLayout& stored, DType dtype) {
  return stored.dtype == dtype ? 0 : std::max(stored.panel_bytes(), HostMemory::kPaged);
}

}  // namespace stagecoach::cpu
