// y = epilogue(x * w + bias) for some rows and one panel of columns: sums into scratch (tile-inl.hpp), then
// one pass that adds the bias, applies the activation or adds to the output.
//
// Few rows read the packed panel directly, k-block by k-block, so that the block is read from memory once and
// from L1 by the other tiles; meanwhile the next block is fetched. Many rows first copy a k-block of the
// panel, widened to float, into contiguous strips of a tile's width that stay in L1 while all row tiles pass
// over them.
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

inline constexpr std::int64_t kPanelUnits = kPanel / kUnit;
// Up to this many rows read the panel directly.
inline constexpr std::int64_t kDirectRows = 3 * kTileRows;
// k-block of the direct path: 16 KiB of float weights.
inline constexpr std::int64_t kDirectK = 64;
// How far ahead one row fetches, in bytes: helps 16-bit weights; with more, float32 falls behind the
// hardware's own.
inline constexpr std::int64_t kStreamAhead = 512;

// One row: streams the panel once, all 64 sums in registers.
template <class W>
HWY_INLINE void stream_panel(const float* HWY_RESTRICT x, std::int64_t in, const W* HWY_RESTRICT w,
                             float* HWY_RESTRICT sums) {
  constexpr int kVecs = static_cast<int>(kPanel) / kLanes;
  constexpr int kLines = static_cast<int>(kPanel * static_cast<std::int64_t>(sizeof(W))) / 64;
  const FloatTag d;
  FloatVec acc[kVecs];
  for (int v = 0; v < kVecs; ++v) acc[v] = hn::Zero(d);
  for (std::int64_t k = 0; k < in; ++k) {
    const FloatVec a = hn::Set(d, x[k]);
    for (int line = 0; line < kLines; ++line) {
      hwy::Prefetch(reinterpret_cast<const char*>(w) + kStreamAhead + line * 64);
    }
    for (int v = 0; v < kVecs; ++v) acc[v] = hn::MulAdd(a, load_wide(w + v * kLanes), acc[v]);
    w += kPanel;
  }
  for (int v = 0; v < kVecs; ++v) hn::StoreU(acc[v], d, sums + v * kLanes);
}

// Bytes that each of `tiles` tiles fetches per k, so that together they fetch the next k-block.
template <class W>
HWY_INLINE std::int64_t prefetch_step(std::int64_t tiles) {
  return (kPanel * static_cast<std::int64_t>(sizeof(W)) + tiles - 1) / tiles;
}

template <class W>
HWY_INLINE void sum_few_rows(const float* x, std::int64_t rows, std::int64_t in, const W* w, float* sums) {
  const std::int64_t fetch = prefetch_step<W>(tile_total(rows, kPanelUnits));
  for (std::int64_t k = 0; k < in; k += kDirectK) {
    const std::int64_t count = std::min(kDirectK, in - k);
    const auto* next = reinterpret_cast<const char*>(w + (k + count) * kPanel);
    accumulate(rows, kPanelUnits, PackedOperands{x, in, k, count, sums, kPanel, k > 0, next, fetch}, w + k * kPanel,
               kPanel);
  }
}

// Strip s of `wide` holds columns [s * kTileColumns, (s + 1) * kTileColumns) as (count, kTileColumns).
template <class W>
HWY_INLINE void widen_strips(const W* HWY_RESTRICT w, std::int64_t count, float* HWY_RESTRICT wide) {
  constexpr int kStripVecs = static_cast<int>(kTileColumns) / kLanes;
  for (std::int64_t k = 0; k < count; ++k) {
    for (std::int64_t s = 0; s < kPanel / kTileColumns; ++s) {
      float* strip = wide + (s * count + k) * kTileColumns;
      for (int v = 0; v < kStripVecs; ++v) {
        hn::StoreU(load_wide(w + k * kPanel + s * kTileColumns + v * kLanes), FloatTag(), strip + v * kLanes);
      }
    }
  }
}

template <class W>
HWY_INLINE void sum_many_rows(const float* x, std::int64_t rows, std::int64_t in, const W* w, const Scratch& scratch) {
  constexpr std::int64_t kStrips = kPanel / kTileColumns;
  const std::int64_t fetch = prefetch_step<W>(tile_count(rows) * kStrips);
  for (std::int64_t k = 0; k < in; k += kWideK) {
    const std::int64_t count = std::min(kWideK, in - k);
    widen_strips(w + k * kPanel, count, scratch.wide);
    PackedOperands op{x, in, k, count, scratch.partial, kPanel, k > 0, nullptr, fetch};
    op.prefetch = reinterpret_cast<const char*>(w + (k + count) * kPanel);
    for (std::int64_t s = 0; s < kStrips; ++s) {
      accumulate_columns<kTileUnits>(rows, op, scratch.wide + s * count * kTileColumns, kTileColumns);
      op.acc += kTileColumns;
      op.prefetch += tile_count(rows) * fetch * count;
    }
  }
}

template <class W>
HWY_INLINE void sum_panel(const LinearArgs& args, std::int64_t panel, std::int64_t first_row, std::int64_t rows,
                          const Scratch& scratch) {
  const W* w = static_cast<const W*>(args.weights) + panel * args.in * kPanel;
  const float* x = args.x + first_row * args.in;
  if (rows == 1) {
    stream_panel(x, args.in, w, scratch.partial);
  } else if (rows <= kDirectRows) {
    sum_few_rows(x, rows, args.in, w, scratch.partial);
  } else {
    sum_many_rows(x, rows, args.in, w, scratch);
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
HWY_NOINLINE void finish_panel(const LinearArgs& args, std::int64_t panel, std::int64_t first_row, std::int64_t rows,
                               const float* sums) {
  const std::int64_t first = panel * kPanel;
  const std::int64_t columns = std::min(kPanel, args.out - first);
  const std::int64_t whole = columns / kLanes * kLanes;
  const std::int64_t rest = columns - whole;
  for (std::int64_t r = 0; r < rows; ++r, sums += kPanel) {
    float* y = args.y + (first_row + r) * args.y_stride + first;
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

void linear(const LinearArgs& args, std::int64_t panel, std::int64_t first_row, std::int64_t rows,
            const Scratch& scratch) {
  switch (args.dtype) {
    case DType::kFloat32:
      sum_panel<float>(args, panel, first_row, rows, scratch);
      break;
    case DType::kFloat16:
      sum_panel<hwy::float16_t>(args, panel, first_row, rows, scratch);
      break;
    case DType::kBFloat16:
      sum_panel<hwy::bfloat16_t>(args, panel, first_row, rows, scratch);
      break;
    case DType::kInt8:
      sum_panel_int8(args, panel, first_row, rows, kDirectRows, scratch);
      break;
  }
  switch (args.epilogue.activation) {
    case Activation::kNone:
      return finish_panel<Activation::kNone>(args, panel, first_row, rows, scratch.partial);
    case Activation::kGeluTanh:
      return finish_panel<Activation::kGeluTanh>(args, panel, first_row, rows, scratch.partial);
    case Activation::kGeluErf:
      return finish_panel<Activation::kGeluErf>(args, panel, first_row, rows, scratch.partial);
    case Activation::kRelu:
      return finish_panel<Activation::kRelu>(args, panel, first_row, rows, scratch.partial);
    case Activation::kSilu:
      return finish_panel<Activation::kSilu>(args, panel, first_row, rows, scratch.partial);
  }
}

void pack(const void* x, std::int64_t x_stride, std::int64_t rows, std::int64_t in, void* packed) {
  const auto* HWY_RESTRICT from = static_cast<const std::byte*>(x);
  auto* HWY_RESTRICT to = static_cast<std::byte*>(packed);
  constexpr std::int64_t kStep = 64;  // its part of the result stays in L1 while rows are added to it
  for (std::int64_t tiles = tile_count(rows); tiles > 0; --tiles) {
    const std::int64_t height = (rows + tiles - 1) / tiles;
    for (std::int64_t begin = 0; begin < in; begin += kStep) {
      const std::int64_t end = std::min(begin + kStep, in);
      for (std::int64_t r = 0; r < height; ++r) {
        for (std::int64_t k = begin; k < end; ++k)
          std::memcpy(to + (k * height + r) * 4, from + (r * x_stride + k) * 4, 4);
      }
    }
    from += height * x_stride * 4;
    to += height * in * 4;
    rows -= height;
  }
}

}  // namespace stagecoach::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
#endif
