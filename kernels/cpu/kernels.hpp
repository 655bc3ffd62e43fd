// What each instruction set provides: plain functions, chosen per backend object, that do one task of an
// operation on one thread. They know pointers and strides; shapes were checked before. Every row's result is
// independent of the task's other rows, and the same for every instruction set with 4, 8 or 16 float lanes
// and fused multiply-add.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/backend.hpp"
#include "kernels/cpu/layout.hpp"

namespace stagecoach::cpu {

// Most rows and panels of one linear task: the partial sums, 96 KiB, a k-block of these rows of x, as much, and one of
// a panel's weights, 64 KiB, stay in an L2 of 512 KiB together. So x comes from farther away once for all panels of the
// task, which matters where neighbours on a machine share its L3.
inline constexpr std::int64_t kRowBlock = 96;
inline constexpr std::int64_t kTaskPanels = 4;
// Instead of kRowBlock where L2 has kLargeL2 and weights are widened to floats, which is then done for more rows at
// once: a tenth faster.
inline constexpr std::int64_t kLargeRowBlock = 264;
inline constexpr std::int64_t kLargeL2 = std::int64_t{2} << 20;
// Blocks of rows are whole tiles of every instruction set.
inline constexpr std::int64_t kRowUnit = 12;
// Rows of k whose weights are widened together: 16 columns of them take 16 KiB, half of the smallest L1.
inline constexpr std::int64_t kWideK = 256;
// And columns: from whole cache lines of 16-bit weights, and in L1 when they are read.
inline constexpr std::int64_t kWideColumns = 32;
// Rows of one sequence that attend together, and heads of a single row.
inline constexpr std::int64_t kGroupRows = 48;
inline constexpr std::int64_t kGroupHeads = 24;
static_assert(kGroupHeads <= kGroupRows);  // both are the slots of a task
// Rows that a tile reads side by side are this much apart beyond a multiple of 64 floats: in different sets of L1, and
// each on cache lines of its own, which whole vectors are written to.
inline constexpr std::int64_t kRowPad = 16;
inline constexpr std::int64_t kScoreStride = kPagePositions + kRowPad;

// Working memory of one thread in linear(); attention takes attention_scratch_floats(head_dim) floats.
struct Scratch {
  float* partial = nullptr;  // (panels, rows, kPanel), panels * rows at most kTaskPanels * kLargeRowBlock
  float* wide = nullptr;     // (kWideK, kWideColumns)
};
constexpr std::int64_t attention_scratch_floats(std::int64_t head_dim) {
  return kGroupRows * (kScoreStride + kRowPad + kUnit + 3 * round_up(head_dim, kUnit)) + 6 * (kGroupRows + kUnit);
}

// Rows of x rounded to 16 bits: x(r, k) is about values(r, k) * scales(r, k / kInt8Group).
struct QuantizedRows {
  const std::int32_t* pairs = nullptr;  // values of two consecutive k each, packed (Kernels::pack)
  std::int64_t stride = 0;              // pairs of a row
  const float* scales = nullptr;        // (rows, groups)
  std::int64_t groups = 0;
};

// y(r, :) = epilogue(x(r, :) * w + bias) for the rows and the columns of a task's panels.
struct LinearArgs {
  const float* x;           // (rows, in), packed (Kernels::pack)
  QuantizedRows quantized;  // instead of x for int8 weights
  const void* weights;      // MatrixLayout{in, out} or Int8Layout
  DType dtype;
  std::int64_t in;
  std::int64_t out;
  const float* bias;  // (out) or null
  Epilogue epilogue;
  float* y;  // (rows, out)
  std::int64_t y_stride;
  std::int64_t fetch_ahead;  // how many bytes ahead rows that stream through weights fetch them
};

struct LinearTask {
  std::int64_t panel;   // the first of
  std::int64_t panels;  // these
  std::int64_t first_row;
  std::int64_t rows;  // at most kLargeRowBlock; times `panels` at most kTaskPanels as many
};

struct AttentionArgs {
  const float* qkv;  // (rows, 3 * n_head * head_dim)
  std::int64_t qkv_stride;
  float* out;  // (rows, n_head * head_dim)
  std::int64_t out_stride;
  std::byte* pages;
  std::int64_t page_bytes;
  DType dtype;
  PageLayout layout;
  float scale;
  std::int64_t fetch_ahead;  // as of LinearArgs, of keys and values
};
// Rows [first_row, first_row + rows) of one sequence with increasing positions; `table` is its page table.
struct AttentionGroup {
  std::int64_t first_row;
  std::int64_t rows;
  const std::int32_t* positions;  // (rows)
  const std::int32_t* table;
};
// More than one head, at most kGroupHeads, for a group of one row alone.
struct AttentionHeads {
  std::int64_t first, count;
};
// Where the sums of one segment of the rows of a group go: its parts, each of n_head * head_dim values, then the
// largest score and the sum of each head, as backend.hpp says.
struct SegmentParts {
  float* data;
  std::int64_t stride;
  const std::int64_t* first;  // (rows) number of a row's first part
  std::int64_t segment;
  std::int64_t ordinal;  // of the segment among those that are here
};

struct EmbedArgs {
  const void* table;  // MatrixLayout{in = n_embd, out = vocab}
  DType dtype;
  MatrixLayout layout;
};

struct NormArgs {
  const float* gain;
  const float* bias;
  float epsilon;
  std::int64_t cols;
};

struct Kernels {
  void (*linear)(const LinearArgs& args, const LinearTask& task, const Scratch& scratch);
  // Packs the rows of one task of linear(), which must begin and end as the task does, 32-bit elements of either kind:
  // tiles one after the other, each as (in, tile's rows). One row is packed as it is.
  void (*pack)(const void* x, std::int64_t x_stride, std::int64_t rows, std::int64_t in, void* packed);
  void (*append)(const AttentionArgs& args, std::int64_t row, AttentionHeads heads, std::byte* page, std::int64_t slot,
                 float* scratch);
  void (*attend)(const AttentionArgs& args, const AttentionGroup& group, AttentionHeads heads, float* scratch);
  // One segment of it.
  void (*attend_part)(const AttentionArgs& args, const AttentionGroup& group, AttentionHeads heads,
                      const SegmentParts& parts, float* scratch);
  // One row of all heads from its parts, in order; scratch as of attend.
  void (*merge_parts)(const PageLayout& layout, std::span<const float* const> parts, float* out, float* scratch);
  void (*layer_norm)(const NormArgs& args, const float* x, float* out);
  // Converts n elements; rounds to nearest even.
  void (*widen)(const void* from, DType dtype, float* to, std::int64_t n);
  void (*narrow)(const float* from, void* to, DType dtype, std::int64_t n);
  // One row of x to 16 bits, with a zero up to an even number of values, and its scales.
  void (*quantize_row)(const float* x, std::int64_t in, std::int16_t* values, float* scales);
  // One group of a panel of int8 weights from float32 (count, kPanel), count <= kInt8Group.
  void (*quantize_group)(const float* weights, std::int64_t count, float* scales, std::int8_t* values);
  // Element-wise, for tests of accuracy: exp, 2^(x factor) up to 1, and each Activation.
  void (*exp)(const float* x, float* y, std::int64_t n);
  void (*exp2_of_negative)(const float* x, float factor, float* y, std::int64_t n);
  void (*activate)(Activation activation, const float* x, float* y, std::int64_t n);
};

// `simd` is not kBest here; the CPU must have it. Each file of kernels fills its part of the table.
Kernels kernels_for(Simd simd);
void set_linear_kernels(Simd simd, Kernels& kernels);
void set_attention_kernels(Simd simd, Kernels& kernels);
void set_row_kernels(Simd simd, Kernels& kernels);

// LinearArgs::fetch_ahead for this CPU.
std::int64_t best_fetch_ahead();

// What kBest stands for here; other values are returned as they are. Throws DeviceError when the CPU lacks
// it.
Simd resolve_simd(Simd simd);

}  // namespace stagecoach::cpu
