// Packs host arrays of weights into the panels of a matrix (layout.hpp), on all threads.
#pragma once

#include "kernels/cpu/kernels.hpp"
#include "kernels/cpu/thread_pool.hpp"

namespace stagecoach::cpu {

// host.rows rows of an (in, out) or (out, in) array, from row `first_row` of it on; shapes were checked.
void pack_rows(ThreadPool& pool, const Kernels& kernels, Matrix& matrix, WeightLayout layout, std::int64_t first_row,
               Tensor host);
// w(k, n) of a packed matrix.
float packed_element(const Matrix& matrix, std::int64_t k, std::int64_t n);

}  // namespace stagecoach::cpu
