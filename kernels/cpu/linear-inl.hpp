// y = epilogue(x * w + bias) for some rows and some panels of columns: sums into scratch (tile-inl.hpp), then
// one pass that adds the bias, applies the activation or adds to the output.
//
// As few rows as one tile of a whole panel holds stream through it. Some more read it directly as well, k-block by
// k-block, so that the block is read from memory once and from L1 by the other tiles; meanwhile the next block is
// fetched. Many rows first copy a k-block of one panel after the other, widened to float, into contiguous strips of a
// tile's width that stay in L1 while all row tiles pass over them; the rows of this k-block stay in L2.
#if defined(STAGECOACH_CPU_LINEAR_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef STAGECOACH_CPU_LINEAR_INL
#undef STAGECOACH_CPU_LINEAR_INL
#else
#define STAGECOACH_CPU_LINEAR_INL
#endif

#include <cstring>

#include "kernels/cpu/int8-inl.hpp"
#include "kernels/cpu/kernels.hpp"
#include "kernels/cpu/math-inl.hpp"
#include "kernels/cpu/tile-inl.hpp"

#if HWY_TARGET & STAGECOACH_SIMD_TARGETS
HWY_BEFORE_NAMESPACE();
namespace stagecoach::cpu::HWY_NAMESPACE {

// Up to this many rows read the panel directly.
inline constexpr std::int64_t kDirectRows = 3 * kTileRows;
// k-block of the direct path: 16 KiB of float weights.
inline constexpr std::int64_t kDirectK = 64;

// Bytes that each of `tiles` tiles fetches per k, so that together they fetch the next k-block.
template <class W>
HWY_INLINE std::int64_t prefetch_step(std::int64_t tiles) {
  return (kPanel * static_cast<std::int64_t>(sizeof(W)) + tiles - 1) / tiles;
}

template <class W>
HWY_INLINE void sum_few_rows(const float* x, std::int64_t rows, std::int64_t in, const W* w, std::int64_t fetch_ahead,
                             float* sums) {
  std::fill_n(sums, rows * kPanel, 0.0F);
  if (rows <= kStreamRows) {
    const auto* next = reinterpret_cast<const char*>(w) + fetch_ahead;
    stream_panel(rows, PackedOperands{x, in, 0, in, sums, kPanel, next, prefetch_step<W>(1)}, w, kPanel);
    return;
  }
  const std::int64_t fetch = prefetch_step<W>(tile_total(rows, kPanelUnits));
  for (std::int64_t k = 0; k < in; k += kDirectK) {
    const std::int64_t count = std::min(kDirectK, in - k);
    const auto* next = reinterpret_cast<const char*>(w + (k + count) * kPanel);
    accumulate(rows, kPanelUnits, PackedOperands{x, in, k, count, sums, kPanel, next, fetch}, w + k * kPanel, kPanel);
  }
}

static_assert(kPanel % kWideColumns == 0 && kWideColumns % kTileColumns == 0);
inline constexpr std::int64_t kWideStrips = kWideColumns / kTileColumns;

// kWideColumns columns of a panel: strip s of `wide` holds [s * kTileColumns, (s + 1) * kTileColumns) as
// (count, kTileColumns).
template <class W>
HWY_INLINE void widen_strips(const W* HWY_RESTRICT w, std::int64_t count, float* HWY_RESTRICT wide) {
  constexpr int kStripVecs = static_cast<int>(kTileColumns) / kLanes;
  for (std::int64_t k = 0; k < count; ++k) {
    for (std::int64_t s = 0; s < kWideStrips; ++s) {
      float* strip = wide + (s * count + k) * kTileColumns;
      for (int v = 0; v < kStripVecs; ++v) {
        hn::StoreU(load_wide(w + k * kPanel + s * kTileColumns + v * kLanes), FloatTag(), strip + v * kLanes);
      }
    }
  }
}

template <class W>
HWY_INLINE void sum_many_rows(const float* x, const LinearTask& task, std::int64_t in, const W* first,
                              const Scratch& scratch) {
  constexpr std::int64_t kStrips = kPanel / kTileColumns;
  const std::int64_t tiles = tile_count(task.rows);
  const std::int64_t fetch = prefetch_step<W>(tiles * kStrips);
  std::fill_n(scratch.partial, task.panels * task.rows * kPanel, 0.0F);
  for (std::int64_t k = 0; k < in; k += kWideK) {
    const std::int64_t count = std::min(kWideK, in - k);
    for (std::int64_t p = 0; p < task.panels; ++p) {
      const W* w = first + (p * in + k) * kPanel;
      const W* next = p + 1 < task.panels ? w + in * kPanel : first + (k + count) * kPanel;
      PackedOperands op{
          x,    in, k, count, scratch.partial + p * task.rows * kPanel, kPanel, reinterpret_cast<const char*>(next),
          fetch};
      for (std::int64_t s = 0; s < kStrips; ++s) {
        if (s % kWideStrips == 0) widen_strips(w + s * kTileColumns, count, scratch.wide);
        const float* strip = scratch.wide + s % kWideStrips * count * kTileColumns;
        accumulate_columns<kTileUnits>(task.rows, op, strip, kTileColumns);
        op.acc += kTileColumns;
        op.prefetch += tiles * fetch * count;
      }
    }
  }
}

template <class W>
HWY_INLINE void sum_panels(const LinearArgs& args, const LinearTask& task, const Scratch& scratch) {
  const W* w = static_cast<const W*>(args.weights) + task.panel * args.in * kPanel;
  const float* x = args.x + task.first_row * args.in;
  if (task.rows > kDirectRows) return sum_many_rows(x, task, args.in, w, scratch);
  for (std::int64_t p = 0; p < task.panels; ++p, w += args.in * kPanel) {
    sum_few_rows(x, task.rows, args.in, w, args.fetch_ahead, scratch.partial + p * task.rows * kPanel);
  }
}

// value = activation(sums + bias), or y + sums + bias, over whole vectors.
template <Activation kActivation>
HWY_INLINE void finish_columns(const float* sums, const float* bias, bool add, float* y, std::int64_t n) {
  const FloatTag d;
  for (std::int64_t c = 0; c < n; c += kLanes) {
    FloatVec value = hn::LoadU(d, sums + c);
    if (bias != nullptr) value = hn::Add(value, hn::LoadU(d, bias + c));
    value = activate_v<kActivation>(d, value);
    if (add) value = hn::Add(hn::LoadU(d, y + c), value);
    hn::StoreU(value, d, y + c);
  }
}

template <Activation kActivation>
HWY_INLINE void finish_panel(const LinearArgs& args, const LinearTask& task, std::int64_t p, const float* sums) {
  const std::int64_t first = (task.panel + p) * kPanel;
  const std::int64_t columns = std::min(kPanel, args.out - first);
  const std::int64_t whole = columns / kLanes * kLanes;
  const std::int64_t rest = columns - whole;
  for (std::int64_t r = 0; r < task.rows; ++r, sums += kPanel) {
    float* y = args.y + (task.first_row + r) * args.y_stride + first;
    const float* bias = args.bias == nullptr ? nullptr : args.bias + first;
    finish_columns<kActivation>(sums, bias, args.epilogue.add_to_output, y, whole);
    if (rest == 0) continue;
    float tail[kLanes] = {};
    float tail_bias[kLanes] = {};
    std::copy_n(y + whole, args.epilogue.add_to_output ? rest : 0, tail);
    if (bias != nullptr) std::copy_n(bias + whole, rest, tail_bias);
    finish_columns<kActivation>(sums + whole, bias == nullptr ? nullptr : tail_bias, args.epilogue.add_to_output, tail,
                                kLanes);
    std::copy_n(tail, rest, y + whole);
  }
}

template <Activation kActivation>
HWY_NOINLINE void finish_panels(const LinearArgs& args, const LinearTask& task, const float* sums) {
  for (std::int64_t p = 0; p < task.panels; ++p) {
    finish_panel<kActivation>(args, task, p, sums + p * task.rows * kPanel);
  }
}

template <bool kVnni>
HWY_INLINE void linear_with(const LinearArgs& args, const LinearTask& task, const Scratch& scratch) {
  switch (args.dtype) {
    case DType::kFloat32:
      sum_panels<float>(args, task, scratch);
      break;
    case DType::kFloat16:
      sum_panels<hwy::float16_t>(args, task, scratch);
      break;
    case DType::kBFloat16:
      sum_panels<hwy::bfloat16_t>(args, task, scratch);
      break;
    case DType::kInt8:
      sum_panels_int8<kVnni>(args, task, kDirectRows, scratch);
      break;
  }
  switch (args.epilogue.activation) {
    case Activation::kNone:
      return finish_panels<Activation::kNone>(args, task, scratch.partial);
    case Activation::kGeluTanh:
      return finish_panels<Activation::kGeluTanh>(args, task, scratch.partial);
    case Activation::kGeluErf:
      return finish_panels<Activation::kGeluErf>(args, task, scratch.partial);
    case Activation::kRelu:
      return finish_panels<Activation::kRelu>(args, task, scratch.partial);
    case Activation::kSilu:
      return finish_panels<Activation::kSilu>(args, task, scratch.partial);
  }
}

void linear(const LinearArgs& args, const LinearTask& task, const Scratch& scratch) {
  linear_with<false>(args, task, scratch);
}
#if HWY_TARGET == HWY_AVX3
void linear_vnni(const LinearArgs& args, const LinearTask& task, const Scratch& scratch) {
  linear_with<true>(args, task, scratch);
}
#endif

// One tile of x, elements of 32 bits of either kind.
template <int kRows>
HWY_INLINE void pack_tile(const std::byte* HWY_RESTRICT from, std::int64_t x_stride, std::int64_t in,
                          std::byte* HWY_RESTRICT to) {
  for (std::int64_t k = 0; k < in; ++k, from += 4, to += kRows * 4) {
    for (int r = 0; r < kRows; ++r) std::memcpy(to + r * 4, from + r * x_stride * 4, 4);
  }
}

template <int kRows = kTileRows>
HWY_INLINE void pack_tile(std::int64_t rows, const std::byte* from, std::int64_t x_stride, std::int64_t in,
                          std::byte* to) {
  if (rows == kRows) return pack_tile<kRows>(from, x_stride, in, to);
  if constexpr (kRows > 1) pack_tile<kRows - 1>(rows, from, x_stride, in, to);
}

void pack(const void* x, std::int64_t x_stride, std::int64_t rows, std::int64_t in, void* packed) {
  const auto* from = static_cast<const std::byte*>(x);
  auto* to = static_cast<std::byte*>(packed);
  for (std::int64_t tiles = tile_count(rows); tiles > 0; --tiles) {
    const std::int64_t height = (rows + tiles - 1) / tiles;
    pack_tile(height, from, x_stride, in, to);
    from += height * x_stride * 4;
    to += height * in * 4;
    rows -= height;
  }
}

}  // namespace stagecoach::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
#endif
