#include "kernels/weight_layout.hpp"

#include "kernels/convert.hpp"
#include "kernels/cpu/pack.hpp"

namespace stagecoach {
namespace {

template <class T>
void copy_columns(const std::byte* panel, bool in_out, Tensor rows) {
  const T* from = reinterpret_cast<const T*>(panel);
  for (std::int64_t r = 0; r < rows.rows; ++r) {
    T* to = reinterpret_cast<T*>(rows.row(r));
    for (std::int64_t c = 0; c < rows.cols; ++c) to[c] = from[in_out ? r * kPanel + c : c * kPanel + r];
  }
}

}  // namespace

float packed_element(const PackedMatrix& matrix, std::int64_t k, std::int64_t n) {
  const auto& [in, out, dtype] = matrix.layout;
  if (dtype != DType::kInt8) return load_element(matrix.data, dtype, MatrixLayout{in, out}.index(k, n));
  const std::byte* group = matrix.data + Int8Layout{in, out}.group_begin(n / kPanel, k / kInt8Group);
  const auto* values = reinterpret_cast<const std::int8_t*>(group + Int8Layout::kScaleBytes);
  return static_cast<float>(values[Int8Layout::value_index(k % kInt8Group, n % kPanel)]) *
         reinterpret_cast<const float*>(group)[n % kPanel];
}

void pack_rows(const PackedMatrix& matrix, WeightLayout layout, std::int64_t first_row, Tensor host) {
  static const cpu::Kernels kernels = cpu::kernels_for(cpu::resolve_simd(Simd::kBest));
  cpu::ThreadPool here(1);
  cpu::pack_rows(here, kernels, matrix, layout, first_row, host);
}

void unpack_panel(const PackedMatrix& matrix, std::int64_t panel, WeightLayout layout, Tensor rows) {
  const bool in_out = layout == WeightLayout::kInOut;
  if (matrix.layout.dtype == rows.dtype) {
    const auto copy = size_of(rows.dtype) == 4 ? copy_columns<float> : copy_columns<std::uint16_t>;
    return copy(matrix.panel(panel), in_out, rows);
  }
  for (std::int64_t r = 0; r < rows.rows; ++r) {
    for (std::int64_t c = 0; c < rows.cols; ++c) {
      const std::int64_t k = in_out ? r : c;
      const std::int64_t column = in_out ? c : r;
      store_element(rows.row(r), rows.dtype, c, packed_element(matrix, k, panel * kPanel + column));
    }
  }
}

void convert_panel(const PackedLayout& from, const std::byte* panel, DType to, std::byte* result) {
  static const cpu::Kernels kernels = cpu::kernels_for(cpu::resolve_simd(Simd::kBest));
  cpu::convert_panel(kernels, from, panel, to, result);
}

std::optional<PanelPlace> first_not_finite(const PackedLayout& layout, const std::byte* panel, DType to) {
  const std::int64_t at = first_not_finite(panel, layout.dtype, to, layout.in * kPanel);
  if (at < 0) return std::nullopt;
  return PanelPlace{at / kPanel, at % kPanel, load_element(panel, layout.dtype, at)};
}

}  // namespace stagecoach
