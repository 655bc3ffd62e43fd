#include "kernels/cpu/pack.hpp"

#include <algorithm>
#include <cstring>

namespace stagecoach::cpu {
namespace {

// Rows of k that one task packs of an (in, out) array: panel after panel, so that reads and writes are both
// in pieces of some hundred bytes and more.
constexpr std::int64_t kRowsPerTask = 16;
// Side of the square that is transposed at a time.
constexpr std::int64_t kSquare = kPanel;

std::byte* element(const Matrix& matrix, std::int64_t index) {
  return static_cast<std::byte*>(matrix.storage.data()) + index * size_of(matrix.dtype);
}
const std::byte* element(Tensor host, std::int64_t r, std::int64_t c) {
  return host.row(r) + c * size_of(host.dtype);
}

// n <= kPanel elements, by way of float32, which holds every value of the other two exactly.
void convert(const Kernels& kernels, const std::byte* from, DType from_dtype, std::byte* to, DType to_dtype,
             std::int64_t n) {
  if (from_dtype == to_dtype) {
    std::memcpy(to, from, static_cast<std::size_t>(n * size_of(to_dtype)));
    return;
  }
  float wide[kPanel];
  kernels.widen(from, from_dtype, wide, n);
  kernels.narrow(wide, to, to_dtype, n);
}

void pack_in_out(const Kernels& kernels, const Matrix& matrix, std::int64_t first_row, Tensor host, std::int64_t begin,
                 std::int64_t end) {
  const MatrixLayout layout{matrix.in, matrix.out};
  for (std::int64_t n = 0; n < matrix.out; n += kPanel) {
    const std::int64_t count = std::min(kPanel, matrix.out - n);
    for (std::int64_t r = begin; r < end; ++r) {
      convert(kernels, element(host, r, n), host.dtype, element(matrix, layout.index(first_row + r, n)), matrix.dtype,
              count);
    }
  }
}

// Writes host rows [begin, end), which are columns of one panel, for k in [k_begin, k_begin + count).
template <class T>
void transpose_square(const Kernels& kernels, const Matrix& matrix, std::int64_t first_row, Tensor host,
                      std::int64_t begin, std::int64_t end, std::int64_t k_begin, std::int64_t count) {
  const MatrixLayout layout{matrix.in, matrix.out};
  alignas(64) T square[kSquare][kSquare];  // (column, k)
  for (std::int64_t r = begin; r < end; ++r) {
    convert(kernels, element(host, r, k_begin), host.dtype, reinterpret_cast<std::byte*>(square[r - begin]),
            matrix.dtype, count);
  }
  for (std::int64_t k = 0; k < count; ++k) {
    T* to = reinterpret_cast<T*>(element(matrix, layout.index(k_begin + k, first_row + begin)));
    for (std::int64_t r = begin; r < end; ++r) to[r - begin] = square[r - begin][k];
  }
}

void pack_out_in(const Kernels& kernels, const Matrix& matrix, std::int64_t first_row, Tensor host, std::int64_t begin,
                 std::int64_t end) {
  for (std::int64_t k = 0; k < matrix.in; k += kSquare) {
    const std::int64_t count = std::min(kSquare, matrix.in - k);
    if (matrix.dtype == DType::kFloat32) {
      transpose_square<float>(kernels, matrix, first_row, host, begin, end, k, count);
    } else {
      transpose_square<std::uint16_t>(kernels, matrix, first_row, host, begin, end, k, count);
    }
  }
}

}  // namespace

void pack_rows(ThreadPool& pool, const Kernels& kernels, Matrix& matrix, WeightLayout layout, std::int64_t first_row,
               Tensor host) {
  if (host.rows == 0) return;
  if (layout == WeightLayout::kInOut) {
    pool.run((host.rows + kRowsPerTask - 1) / kRowsPerTask, [&](std::int64_t task, int) {
      const std::int64_t begin = task * kRowsPerTask;
      pack_in_out(kernels, matrix, first_row, host, begin, std::min(begin + kRowsPerTask, host.rows));
    });
    return;
  }
  const std::int64_t first_panel = first_row / kPanel;
  const std::int64_t last_panel = (first_row + host.rows - 1) / kPanel;
  pool.run(last_panel - first_panel + 1, [&](std::int64_t task, int) {
    const std::int64_t panel_begin = (first_panel + task) * kPanel;
    const std::int64_t begin = std::max(panel_begin, first_row) - first_row;
    const std::int64_t end = std::min(panel_begin + kPanel, first_row + host.rows) - first_row;
    pack_out_in(kernels, matrix, first_row, host, begin, end);
  });
}

}  // namespace stagecoach::cpu
