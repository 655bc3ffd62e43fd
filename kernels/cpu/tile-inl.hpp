// The one inner loop: acc(r, n) += sum over k of x(r, k) * w(k, n), walking k in order with one fused
// multiply-add per term and one accumulator per element. linear, attention scores and attention values are
// all made of it.
//
// acc (rows, kUnit * units) float, x (rows, k) float, w (k, kUnit * units) float, float16 or bfloat16, acc and w
// with their strides. x is strided as well, or packed: the rows of a tile side by side, (k, tile's rows), one tile
// after the other. Sums begin with 0 or go on from what acc holds (packed ones always). Packed, a step reads neighbours
// instead of one line per row, which for the usual strides are all in the same bank of L1 (or, with strides
// of 4 KiB, in the same set): up to twice as fast. How rows and columns are cut into register tiles, and k into calls
// (partial sums stay exact in memory), changes nothing in any element's sequence of operations: that is the
// layout-invariance contract.
#if defined(STAGECOACH_CPU_TILE_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef STAGECOACH_CPU_TILE_INL
#undef STAGECOACH_CPU_TILE_INL
#else
#define STAGECOACH_CPU_TILE_INL
#endif

#include <algorithm>

#include <hwy/cache_control.h>
#include <hwy/highway.h>
#include "kernels/cpu/layout.hpp"

#if HWY_TARGET & STAGECOACH_SIMD_TARGETS
HWY_BEFORE_NAMESPACE();
namespace stagecoach::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using FloatTag = hn::CappedTag<float, 16>;
using FloatVec = hn::VFromD<FloatTag>;
inline constexpr int kLanes = static_cast<int>(hn::MaxLanes(FloatTag()));
inline constexpr int kUnitVecs = static_cast<int>(kUnit) / kLanes;
// Register tiles: accumulators fill the registers but for the weights and one broadcast. 16 registers hold 6
// rows of 16 columns (8 lanes); 32 registers hold 12 rows of 32 columns (16 lanes) or 6 rows of 16 columns (4
// lanes).
inline constexpr int kTileRows = kLanes == 16 ? 12 : 6;
inline constexpr int kTileUnits = kLanes == 16 ? 2 : 1;
inline constexpr std::int64_t kTileColumns = kTileUnits * kUnit;
// Rows of a tile of all columns of a panel.
inline constexpr std::int64_t kPanelUnits = kPanel / kUnit;
inline constexpr int kStreamRows = kLanes == 16 ? 6 : 1;

HWY_INLINE FloatVec load_wide(const float* p) {
  return hn::LoadU(FloatTag(), p);
}
template <class Half>  // hwy::float16_t or hwy::bfloat16_t
HWY_INLINE FloatVec load_wide(const Half* p) {
  return hn::PromoteTo(FloatTag(), hn::LoadU(hn::Rebind<Half, FloatTag>(), p));
}

// What a tile works on besides the weights. Operands of another kind (int8-inl.hpp) have the same members for cutting:
// kDepth, k_count, prefetch, prefetch_step, skip_rows, skip_columns.
template <bool kPacked, bool kFromZero>
struct FloatOperands {
  static constexpr std::int64_t kDepth = 1;  // weights of a column per step of k
  static constexpr bool kBeginsWithZero = kFromZero;

  const float* x;         // strided: element (0, first k); packed: the tile's element (0, 0)
  std::int64_t x_stride;  // elements from row to row; packed: that a row takes, all k
  std::int64_t k_begin;   // packed: the first k
  std::int64_t k_count;
  float* acc;
  std::int64_t acc_stride;
  const char* prefetch;        // what a later call reads is fetched ahead from here on,
  std::int64_t prefetch_step;  // so many bytes per k: evenly, since a burst would fill the queue of misses

  HWY_INLINE void skip_rows(std::int64_t n) {
    x += n * x_stride;
    acc += n * acc_stride;
  }
  HWY_INLINE void skip_columns(std::int64_t n) { acc += n; }

  // Where a tile of kRows rows begins, and how far apart its elements are.
  template <int kRows>
  HWY_INLINE const float* tile_x() const {
    return kPacked ? x + k_begin * kRows : x;
  }
  HWY_INLINE std::int64_t row_step() const { return kPacked ? 1 : x_stride; }
  template <int kRows>
  static constexpr std::int64_t k_step() {
    return kPacked ? kRows : 1;
  }
};
using TileOperands = FloatOperands<false, true>;
using ContinuedOperands = FloatOperands<false, false>;
using PackedOperands = FloatOperands<true, false>;

// Steps of k that the inner loop takes at once, so that little of it is counting.
inline constexpr int kUnroll = 4;

// Into L2: what lies far ahead would push out of L1 what is in use.
HWY_INLINE void prefetch_far(const char* p) {
  __builtin_prefetch(p, 0, 2);
}

// Fetches what kSteps steps fetch.
template <int kSteps>
HWY_INLINE void prefetch_ahead(const char* begin, std::int64_t step) {
  prefetch_far(begin);
  for (std::int64_t at = 64; at < kSteps * step; at += 64) prefetch_far(begin + at);
}

// sum += a * b, fused. Written out for x86: left to themselves, compilers mix the steps of an unrolled loop, run out of
// registers and copy sums around.
HWY_INLINE void add_product(FloatVec& sum, FloatVec a, FloatVec b) {
#if HWY_ARCH_X86
  auto raw = sum.raw;
  asm volatile("vfmadd231ps %2, %1, %0" : "+v"(raw) : "v"(a.raw), "v"(b.raw));
  sum = FloatVec{raw};
#else
  sum = hn::MulAdd(a, b, sum);
#endif
}

// One step of k; elements of x are `row_step` apart from row to row.
template <int kRows, int kVecs, class W>
HWY_INLINE void add_products(const float* HWY_RESTRICT x, std::int64_t row_step, const W* HWY_RESTRICT w,
                             FloatVec (&acc)[kRows][kVecs]) {
  FloatVec b[kVecs];
  for (int v = 0; v < kVecs; ++v) b[v] = load_wide(w + v * kLanes);
  for (int r = 0; r < kRows; ++r) {
    const FloatVec a = hn::Set(FloatTag(), x[r * row_step]);
    for (int v = 0; v < kVecs; ++v) add_product(acc[r][v], a, b[v]);
  }
}

// groups * kUnroll steps, groups > 0. One loop and no condition around it: otherwise GCC 12 takes all sums through the
// stack on the way in and out, which a short k feels.
template <int kRows, int kUnits, class Operands, class W>
HWY_NOINLINE void tile_groups(const Operands& op, const W* HWY_RESTRICT w, std::int64_t w_stride, std::int64_t groups) {
  constexpr int kVecs = kUnits * kUnitVecs;
  constexpr std::int64_t kStep = Operands::template k_step<kRows>();
  const FloatTag d;
  const std::int64_t row_step = op.row_step();
  const float* HWY_RESTRICT x = op.template tile_x<kRows>();
  const char* prefetch = op.prefetch;
  const std::int64_t prefetch_step = op.prefetch_step;
  float* HWY_RESTRICT sums = op.acc;
  const std::int64_t acc_stride = op.acc_stride;
  FloatVec acc[kRows][kVecs];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVecs; ++v) {
      acc[r][v] = Operands::kBeginsWithZero ? hn::Zero(d) : hn::LoadU(d, sums + r * acc_stride + v * kLanes);
    }
  }
  do {
    prefetch_ahead<kUnroll>(prefetch, prefetch_step);
    for (int u = 0; u < kUnroll; ++u) add_products(x + u * kStep, row_step, w + u * w_stride, acc);
    prefetch += kUnroll * prefetch_step;
    x += kUnroll * kStep;
    w += kUnroll * w_stride;
  } while (--groups > 0);
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVecs; ++v) hn::StoreU(acc[r][v], d, sums + r * acc_stride + v * kLanes);
  }
}

// The last k_count % kUnroll steps, from `k` on.
template <int kRows, int kUnits, class Operands, class W>
HWY_NOINLINE void tile_rest(const Operands& op, const W* HWY_RESTRICT w, std::int64_t w_stride, std::int64_t k) {
  const FloatTag d;
  const float* x = op.template tile_x<kRows>();
  const bool zero = Operands::kBeginsWithZero && k == 0;
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kUnits * kUnitVecs; ++v) {
      float* sum = op.acc + r * op.acc_stride + v * kLanes;
      FloatVec acc = zero ? hn::Zero(d) : hn::LoadU(d, sum);
      for (std::int64_t i = k; i < op.k_count; ++i) {
        const FloatVec a = hn::Set(d, x[i * op.template k_step<kRows>() + r * op.row_step()]);
        acc = hn::MulAdd(a, load_wide(w + i * w_stride + v * kLanes), acc);
      }
      hn::StoreU(acc, d, sum);
    }
  }
}

template <int kRows, int kUnits, bool kPacked, bool kFromZero, class W>
HWY_INLINE void tile(const FloatOperands<kPacked, kFromZero>& op, const W* HWY_RESTRICT w, std::int64_t w_stride) {
  const std::int64_t groups = op.k_count / kUnroll;
  if (groups > 0) tile_groups<kRows, kUnits>(op, w, w_stride, groups);
  if (groups * kUnroll < op.k_count) tile_rest<kRows, kUnits>(op, w, w_stride, groups * kUnroll);
}

// One tile of 1..kRows rows.
template <int kUnits, int kRows = kTileRows, class Operands, class W>
HWY_INLINE void tile_rows(std::int64_t rows, const Operands& op, const W* w, std::int64_t w_stride) {
  if (rows == kRows) return tile<kRows, kUnits>(op, w, w_stride);
  if constexpr (kRows > 1) tile_rows<kUnits, kRows - 1>(rows, op, w, w_stride);
}

// One tile of 1..kStreamRows rows and all columns of a panel, which is read once from end to end.
template <class Operands, class W>
HWY_INLINE void stream_panel(std::int64_t rows, const Operands& op, const W* w, std::int64_t w_stride) {
  tile_rows<static_cast<int>(kPanelUnits), kStreamRows>(rows, op, w, w_stride);
}

// Tiles that `rows` rows are cut into.
HWY_INLINE std::int64_t tile_count(std::int64_t rows) {
  return (rows + kTileRows - 1) / kTileRows;
}

// All rows against `kUnits` units of columns, cut into tiles of nearly equal height.
template <int kUnits, class Operands, class W>
HWY_INLINE void accumulate_columns(std::int64_t rows, Operands op, const W* w, std::int64_t w_stride) {
  for (std::int64_t tiles = tile_count(rows); tiles > 0; --tiles) {
    const std::int64_t height = (rows + tiles - 1) / tiles;
    tile_rows<kUnits>(height, op, w, w_stride);
    op.skip_rows(height);
    op.prefetch += op.prefetch_step * op.k_count;
    rows -= height;
  }
}

// Two or three rows fill the registers better with two units of columns.
template <class Operands, class W>
HWY_INLINE void tile_rows_wide(std::int64_t rows, const Operands& op, const W* w, std::int64_t w_stride) {
  if (rows == 3) return tile<3, 2>(op, w, w_stride);
  if (rows == 2) return tile<2, 2>(op, w, w_stride);
  tile<1, 2>(op, w, w_stride);
}

// All rows against `units` units of columns.
template <class Operands, class W>
HWY_INLINE void accumulate(std::int64_t rows, std::int64_t units, Operands op, const W* w, std::int64_t w_stride) {
  while (units > 0) {
    std::int64_t step = 1;
    std::int64_t tiles = 1;
    if (rows == 1 && units >= 4) {
      step = 4;
      tile<1, 4>(op, w, w_stride);
    } else if (rows <= 3 && units >= 2 && kTileUnits < 2) {
      step = 2;
      tile_rows_wide(rows, op, w, w_stride);
    } else {
      tiles = tile_count(rows);
      if (units >= kTileUnits) {
        step = kTileUnits;
        accumulate_columns<kTileUnits>(rows, op, w, w_stride);
      } else {
        accumulate_columns<1>(rows, op, w, w_stride);
      }
    }
    units -= step;
    w += step * kUnit * Operands::kDepth;
    op.skip_columns(step * kUnit);
    op.prefetch += tiles * op.prefetch_step * op.k_count;
  }
}

// Tiles that `accumulate` cuts rows and units of columns into.
HWY_INLINE std::int64_t tile_total(std::int64_t rows, std::int64_t units) {
  if (rows == 1) return (units + 3) / 4;
  if (rows <= 3 && kTileUnits < 2) return (units + 1) / 2;
  return tile_count(rows) * ((units + kTileUnits - 1) / kTileUnits);
}

}  // namespace stagecoach::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
#endif
