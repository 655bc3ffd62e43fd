#include "kernels/cpu/pack.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <new>

#include "kernels/convert.hpp"

namespace stagecoach::cpu {
namespace {

// Rows of k that one task packs of an (in, out) array: panel after panel, so that reads and writes are both
// in pieces of some hundred bytes and more.
constexpr std::int64_t kRowsPerTask = 16;
// Bytes of panels that one task reads at most: some huge pages, which are cleared when they are first touched, and two
// threads that meet in one would both clear it.
constexpr std::int64_t kReadBytes = 8 << 20;
// Side of the square that is transposed at a time.
constexpr std::int64_t kSquare = kPanel;

std::byte* element(const PackedMatrix& matrix, std::int64_t index) {
  return matrix.data + index * size_of(matrix.layout.dtype);
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

void pack_in_out(const Kernels& kernels, const PackedMatrix& matrix, std::int64_t first_row, Tensor host,
                 std::int64_t begin, std::int64_t end) {
  const MatrixLayout layout{matrix.layout.in, matrix.layout.out};
  for (std::int64_t n = 0; n < matrix.layout.out; n += kPanel) {
    const std::int64_t count = std::min(kPanel, matrix.layout.out - n);
    for (std::int64_t r = begin; r < end; ++r) {
      convert(kernels, element(host, r, n), host.dtype, element(matrix, layout.index(first_row + r, n)),
              matrix.layout.dtype, count);
    }
  }
}

// Writes host rows [begin, end), which are columns of one panel, for k in [k_begin, k_begin + count).
template <class T>
void transpose_square(const Kernels& kernels, const PackedMatrix& matrix, std::int64_t first_row, Tensor host,
                      std::int64_t begin, std::int64_t end, std::int64_t k_begin, std::int64_t count) {
  const MatrixLayout layout{matrix.layout.in, matrix.layout.out};
  alignas(64) T square[kSquare][kSquare];  // (column, k)
  for (std::int64_t r = begin; r < end; ++r) {
    convert(kernels, element(host, r, k_begin), host.dtype, reinterpret_cast<std::byte*>(square[r - begin]),
            matrix.layout.dtype, count);
  }
  for (std::int64_t k = 0; k < count; ++k) {
    T* to = reinterpret_cast<T*>(element(matrix, layout.index(k_begin + k, first_row + begin)));
    for (std::int64_t r = begin; r < end; ++r) to[r - begin] = square[r - begin][k];
  }
}

void pack_out_in(const Kernels& kernels, const PackedMatrix& matrix, std::int64_t first_row, Tensor host,
                 std::int64_t begin, std::int64_t end) {
  for (std::int64_t k = 0; k < matrix.layout.in; k += kSquare) {
    const std::int64_t count = std::min(kSquare, matrix.layout.in - k);
    if (matrix.layout.dtype == DType::kFloat32) {
      transpose_square<float>(kernels, matrix, first_row, host, begin, end, k, count);
    } else {
      transpose_square<std::uint16_t>(kernels, matrix, first_row, host, begin, end, k, count);
    }
  }
}

// Writes columns [begin, end) of one int8 panel's group, whose float32 values are `block`.
void store_int8_group(const Kernels& kernels, const PackedMatrix& matrix, std::int64_t panel, std::int64_t g,
                      const float* block, std::int64_t count, std::int64_t begin, std::int64_t end) {
  alignas(64) float scales[kPanel];
  alignas(64) std::int8_t values[kInt8Group * kPanel];
  kernels.quantize_group(block, count, scales, values);
  std::byte* group = matrix.data + Int8Layout{matrix.layout.in, matrix.layout.out}.group_begin(panel, g);
  std::copy(scales + begin, scales + end, reinterpret_cast<float*>(group) + begin);
  auto* to = reinterpret_cast<std::int8_t*>(group + Int8Layout::kScaleBytes);
  for (std::int64_t k = 0; k < count; k += 2) {
    std::copy(values + Int8Layout::value_index(k, begin), values + Int8Layout::value_index(k, end),
              to + Int8Layout::value_index(k, begin));
  }
}

// Host rows [begin, end) of an (in, out) array: one group, all panels.
void pack_int8_in_out(const Kernels& kernels, const PackedMatrix& matrix, std::int64_t first_row, Tensor host,
                      std::int64_t begin, std::int64_t end) {
  alignas(64) float block[kInt8Group * kPanel] = {};  // the last panel's missing columns stay 0
  for (std::int64_t n = 0; n < matrix.layout.out; n += kPanel) {
    const std::int64_t count = std::min(kPanel, matrix.layout.out - n);
    if (count < kPanel) std::fill_n(block, kInt8Group * kPanel, 0.0F);
    for (std::int64_t r = begin; r < end; ++r) {
      kernels.widen(element(host, r, n), host.dtype, block + (r - begin) * kPanel, count);
    }
    store_int8_group(kernels, matrix, n / kPanel, (first_row + begin) / kInt8Group, block, end - begin, 0, kPanel);
  }
}

// Host rows [begin, end) of an (out, in) array: columns of one panel, all groups.
void pack_int8_out_in(const Kernels& kernels, const PackedMatrix& matrix, std::int64_t first_row, Tensor host,
                      std::int64_t begin, std::int64_t end) {
  alignas(64) float block[kInt8Group * kPanel] = {};
  const std::int64_t first_column = (first_row + begin) % kPanel;
  for (std::int64_t k = 0; k < matrix.layout.in; k += kInt8Group) {
    const std::int64_t count = std::min(kInt8Group, matrix.layout.in - k);
    for (std::int64_t r = begin; r < end; ++r) {
      float wide[kInt8Group];
      kernels.widen(element(host, r, k), host.dtype, wide, count);
      for (std::int64_t i = 0; i < count; ++i) block[i * kPanel + first_column + r - begin] = wide[i];
    }
    store_int8_group(kernels, matrix, (first_row + begin) / kPanel, k / kInt8Group, block, count, first_column,
                     first_column + end - begin);
  }
}

}  // namespace

void pack_rows(ThreadPool& pool, const Kernels& kernels, const PackedMatrix& matrix, WeightLayout layout,
               std::int64_t first_row, Tensor host) {
  if (host.rows == 0) return;
  const bool int8 = matrix.layout.dtype == DType::kInt8;
  if (layout == WeightLayout::kInOut) {
    const std::int64_t each = int8 ? kInt8Group : kRowsPerTask;
    pool.run((host.rows + each - 1) / each, [&](std::int64_t task, int) {
      const std::int64_t begin = task * each;
      const auto pack = int8 ? pack_int8_in_out : pack_in_out;
      pack(kernels, matrix, first_row, host, begin, std::min(begin + each, host.rows));
    });
    return;
  }
  const std::int64_t first_panel = first_row / kPanel;
  const std::int64_t last_panel = (first_row + host.rows - 1) / kPanel;
  pool.run(last_panel - first_panel + 1, [&](std::int64_t task, int) {
    const std::int64_t panel_begin = (first_panel + task) * kPanel;
    const std::int64_t begin = std::max(panel_begin, first_row) - first_row;
    const std::int64_t end = std::min(panel_begin + kPanel, first_row + host.rows) - first_row;
    (int8 ? pack_int8_out_in : pack_out_in)(kernels, matrix, first_row, host, begin, end);
  });
}

void convert_panel(const Kernels& kernels, const PackedLayout& from, const std::byte* panel, DType to,
                   std::byte* result) {
  const std::int64_t row_bytes = kPanel * size_of(from.dtype);
  if (to != DType::kInt8) {
    for (std::int64_t k = 0; k < from.in; ++k) {
      convert(kernels, panel + k * row_bytes, from.dtype, result + k * kPanel * size_of(to), to, kPanel);
    }
    return;
  }
  alignas(64) float block[kInt8Group * kPanel];
  for (std::int64_t g = 0; g < int8_groups(from.in); ++g) {
    const std::int64_t count = std::min(kInt8Group, from.in - g * kInt8Group);
    kernels.widen(panel + g * kInt8Group * row_bytes, from.dtype, block, count * kPanel);
    store_int8_group(kernels, {{from.in, kPanel, to}, result}, 0, g, block, count, 0, kPanel);
  }
}

void load_panels(ThreadPool& pool, const Kernels& kernels, HostMemory& memory, const PackedMatrix& matrix, DType stored,
                 const PanelReader& read) {
  const PackedLayout from{matrix.layout.in, matrix.layout.out, stored};
  const std::int64_t fair = (from.panels() + 2 * pool.threads() - 1) / (2 * pool.threads());
  const std::int64_t each = std::clamp<std::int64_t>(kReadBytes / from.panel_bytes(), 1, fair);
  // Panels that are converted stand in memory of their thread, which begins with a page: copies out of the page cache
  // to some other places take four times as long.
  const std::int64_t staged_bytes = staging_bytes(from, matrix.layout.dtype);
  std::vector<Buffer> staging(staged_bytes > 0 ? static_cast<std::size_t>(pool.threads()) : 0);
  for (Buffer& buffer : staging) buffer = memory.allocate(staged_bytes);
  std::mutex mutex;
  std::exception_ptr failure;
  std::atomic<bool> failed = false;
  pool.run((from.panels() + each - 1) / each, [&](std::int64_t task, int thread) {
    const std::int64_t first = task * each;
    const std::int64_t end = std::min(first + each, from.panels());
    try {
      if (failed) return;
      if (stored == matrix.layout.dtype) return read(first, end - first, matrix.panel(first));
      auto* staged = static_cast<std::byte*>(staging[static_cast<std::size_t>(thread)].data());
      for (std::int64_t p = first; p < end && !failed; ++p) {
        read(p, 1, staged);
        convert_panel(kernels, from, staged, matrix.layout.dtype, matrix.panel(p));
      }
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
      failed = true;
    }
  });
  if (failure) std::rethrow_exception(failure);
}

}  // namespace stagecoach::cpu
