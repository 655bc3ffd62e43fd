// How weight matrices lie: as rows, as model authors publish them, or packed in panels, as the CPU backend computes
// with them and native model files may hold them, so that loading is no more than reading.
//
// The packed layout is a file format, named kPackedLayout: what is written here never changes, and another layout would
// get another name. A matrix (in, out) with elements w(k, n) is a list of panels of kPanel output columns; the last one
// is padded with zero columns. Numbers are little-endian.
//   float32, float16, bfloat16   a panel is (in, kPanel), k-major
//   int8 (int8.hpp)              a panel is its groups of kInt8Group inputs, the last one padded with zeros to an even
//                                number; a group is kPanel float32 scales, then (pairs of inputs, kPanel, 2) int8
//                                values
// A product reads a panel from front to back once, for one row or for many.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "kernels/int8.hpp"
#include "kernels/tensor.hpp"

namespace stagecoach {

// How an array of rows lies: GPT-2's Conv1D stores (in, out), an embedding or LM head stores (out, in).
enum class WeightLayout : std::uint8_t { kInOut, kOutIn };

inline constexpr std::string_view kPackedLayout = "panels-64";
inline constexpr std::int64_t kPanel = 64;

// Floating-point matrices; counts elements.
struct MatrixLayout {
  std::int64_t in;
  std::int64_t out;

  constexpr std::int64_t panels() const { return (out + kPanel - 1) / kPanel; }
  constexpr std::int64_t panel_elements() const { return in * kPanel; }
  constexpr std::int64_t elements() const { return panels() * panel_elements(); }
  constexpr std::int64_t index(std::int64_t k, std::int64_t n) const {
    return n / kPanel * panel_elements() + k * kPanel + n % kPanel;
  }
};

// int8 matrices; counts bytes.
struct Int8Layout {
  static constexpr std::int64_t kScaleBytes = kPanel * 4;
  static constexpr std::int64_t kGroupBytes = kScaleBytes + kInt8Group * kPanel;

  std::int64_t in;
  std::int64_t out;

  constexpr std::int64_t panels() const { return (out + kPanel - 1) / kPanel; }
  constexpr std::int64_t panel_bytes() const { return int8_groups(in) * kScaleBytes + (in + in % 2) * kPanel; }
  constexpr std::int64_t bytes() const { return panels() * panel_bytes(); }
  constexpr std::int64_t pairs(std::int64_t g) const { return (std::min(kInt8Group, in - g * kInt8Group) + 1) / 2; }
  constexpr std::int64_t group_begin(std::int64_t panel, std::int64_t g) const {
    return panel * panel_bytes() + g * kGroupBytes;
  }
  // Within a group's values.
  static constexpr std::int64_t value_index(std::int64_t k, std::int64_t n) {
    return k / 2 * 2 * kPanel + n * 2 + k % 2;
  }
};

// Either of them.
struct PackedLayout {
  std::int64_t in = 0;
  std::int64_t out = 0;
  DType dtype = DType::kFloat32;

  constexpr std::int64_t panels() const { return (out + kPanel - 1) / kPanel; }
  constexpr std::int64_t panel_bytes() const {
    return dtype == DType::kInt8 ? Int8Layout{in, out}.panel_bytes() : in * kPanel * size_of(dtype);
  }
  constexpr std::int64_t bytes() const { return panels() * panel_bytes(); }
  // Columns of panel `p` that are the matrix's own.
  constexpr std::int64_t columns(std::int64_t p) const { return std::min(kPanel, out - p * kPanel); }
};

// A packed matrix in host memory, owned by somebody else.
struct PackedMatrix {
  PackedLayout layout;
  std::byte* data = nullptr;

  std::byte* panel(std::int64_t p) const { return data + p * layout.panel_bytes(); }
};

// w(k, n).
float packed_element(const PackedMatrix& matrix, std::int64_t k, std::int64_t n);

// Packs `host`, rows [first_row, ...) of an (in, out) or (out, in) array, into the zeroed `matrix`, rounding to nearest
// even; for int8 and kInOut in whole groups, as Backend::load_rows.
void pack_rows(const PackedMatrix& matrix, WeightLayout layout, std::int64_t first_row, Tensor host);
// The other way, for one panel: its columns into `rows`, (in, columns) for kInOut and (columns, in) for kOutIn.
void unpack_panel(const PackedMatrix& matrix, std::int64_t panel, WeightLayout layout, Tensor rows);

// One floating-point panel of `from` as one of the same matrix in `to`: the bytes that packing the rows gives.
void convert_panel(const PackedLayout& from, const std::byte* panel, DType to, std::byte* result);

// Where the first value of a floating-point panel stands that is infinite, no number, or too large for `to`.
struct PanelPlace {
  std::int64_t k = 0;
  std::int64_t column = 0;  // of the panel
  float value = 0.0F;
};
std::optional<PanelPlace> first_not_finite(const PackedLayout& layout, const std::byte* panel, DType to);

}  // namespace stagecoach
