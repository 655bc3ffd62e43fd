// Products with int8 weights. Rows of x were rounded to 16 bits (quantize_row in rows.cpp), so that a step of k is two
// weights of a column, as 16-bit numbers, times two values of x, summed in 32 bits (one pmaddwd on x86): at twice the
// rate of float32 multiply-adds, with activations 256 times as fine as the weights.
//
//   acc(r, n) = fma(sum over k in group g of xq(r, k) * q(k, n), x_scale(r, g) * w_scale(g, n), acc(r, n)), g in order.
//
// The sum over a group is exact: 128 * 127 * 32767 < 2^31. So each element has one order of roundings, however rows and
// columns are cut.
#if defined(STAGECOACH_CPU_INT8_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef STAGECOACH_CPU_INT8_INL
#undef STAGECOACH_CPU_INT8_INL
#else
#define STAGECOACH_CPU_INT8_INL
#endif

#include "kernels/cpu/kernels.hpp"
#include "kernels/cpu/tile-inl.hpp"

#if HWY_TARGET & STAGECOACH_SIMD_TARGETS
HWY_BEFORE_NAMESPACE();
namespace stagecoach::cpu::HWY_NAMESPACE {

using IntTag = hn::RebindToSigned<FloatTag>;
using IntVec = hn::VFromD<IntTag>;
using PairTag = hn::Repartition<std::int16_t, IntTag>;
using PairVec = hn::VFromD<PairTag>;

// kLanes columns of two weights each, widened to 16 bits.
HWY_INLINE PairVec load_pairs(const std::int8_t* p) {
  return hn::PromoteTo(PairTag(), hn::LoadU(hn::Rebind<std::int8_t, PairTag>(), p));
}
HWY_INLINE PairVec load_pairs(const std::int16_t* p) {
  return hn::LoadU(PairTag(), p);
}

// sum(n) += a(2n) * b(2n) + a(2n + 1) * b(2n + 1). The addition is written out for x86: left to themselves, compilers
// mix the rows of a tile, run out of registers and copy sums around, which takes half of the speed.
// With kVnni one instruction does both, with the same result.
template <bool kVnni>
HWY_INLINE void add_products(IntVec& sum, PairVec a, PairVec b) {
#if HWY_ARCH_X86
  if constexpr (kVnni) {
    auto raw = sum.raw;
    asm volatile("vpdpwssd %2, %1, %0" : "+v"(raw) : "v"(a.raw), "v"(b.raw));
    sum = IntVec{raw};
    return;
  }
#if HWY_TARGET == HWY_AVX2
  const auto products = _mm256_madd_epi16(a.raw, b.raw);
#else
  const auto products = _mm512_madd_epi16(a.raw, b.raw);
#endif
  auto raw = sum.raw;
  asm volatile("vpaddd %1, %0, %0" : "+v"(raw) : "v"(products));
  sum = IntVec{raw};
#else
  const IntTag d;
  const auto wide_a = hn::BitCast(d, a);
  const auto wide_b = hn::BitCast(d, b);
  const auto low = [](IntVec v) { return hn::ShiftRight<16>(hn::ShiftLeft<16>(v)); };
  sum = hn::Add(sum, hn::Mul(low(wide_a), low(wide_b)));
  sum = hn::Add(sum, hn::Mul(hn::ShiftRight<16>(wide_a), hn::ShiftRight<16>(wide_b)));
#endif
}

template <bool kVnni>
struct Int8Operands {
  static constexpr std::int64_t kDepth = 2;

  const std::int32_t* x;  // packed pairs: the tile's element (0, 0)
  std::int64_t x_stride;  // pairs of a row
  std::int64_t k_begin;   // the first pair
  const float* x_scales;  // of this group: one per row
  std::int64_t x_scale_stride;
  const float* w_scales;  // of this group: one per column
  std::int64_t k_count;   // pairs
  float* acc;
  std::int64_t acc_stride;
  bool resume;
  const char* prefetch;
  std::int64_t prefetch_step;

  HWY_INLINE void skip_rows(std::int64_t n) {
    x += n * x_stride;
    x_scales += n * x_scale_stride;
    acc += n * acc_stride;
  }
  HWY_INLINE void skip_columns(std::int64_t n) {
    acc += n;
    w_scales += n;
  }
};

// One pair of k: `x` holds it for all rows.
template <bool kVnni, int kRows, int kVecs, class W>
HWY_INLINE void add_pair(const std::int32_t* HWY_RESTRICT x, const W* HWY_RESTRICT w, IntVec (&sum)[kRows][kVecs]) {
  PairVec b[kVecs];
  for (int v = 0; v < kVecs; ++v) b[v] = load_pairs(w + v * 2 * kLanes);
  for (int r = 0; r < kRows; ++r) {
    const PairVec a = hn::BitCast(PairTag(), hn::Set(IntTag(), x[r]));
    for (int v = 0; v < kVecs; ++v) add_products<kVnni>(sum[r][v], a, b[v]);
  }
}

// W is int8, or int16 once widened.
template <int kRows, int kUnits, bool kVnni, class W>
HWY_NOINLINE void tile(const Int8Operands<kVnni>& operands, const W* HWY_RESTRICT w, std::int64_t w_stride) {
  const Int8Operands<kVnni> op = operands;
  constexpr int kVecs = kUnits * kUnitVecs;
  const FloatTag d;
  const IntTag di;
  IntVec sum[kRows][kVecs];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVecs; ++v) sum[r][v] = hn::Zero(di);
  }
  const std::int32_t* HWY_RESTRICT x = op.x + op.k_begin * kRows;
  const std::int64_t pairs = op.k_count;
  const char* prefetch = op.prefetch;
  const std::int64_t prefetch_step = op.prefetch_step;
  std::int64_t p = 0;
  // Two at once: less counting. With four, two rows fall behind.
  for (; p + 2 <= pairs; p += 2) {
    prefetch_ahead<2>(prefetch, prefetch_step);
    add_pair<kVnni>(x + p * kRows, w, sum);
    add_pair<kVnni>(x + (p + 1) * kRows, w + w_stride, sum);
    w += 2 * w_stride;
    prefetch += 2 * prefetch_step;
  }
  if (p < pairs) add_pair<kVnni>(x + p * kRows, w, sum);
  for (int r = 0; r < kRows; ++r) {
    const FloatVec x_scale = hn::Set(d, op.x_scales[r * op.x_scale_stride]);
    for (int v = 0; v < kVecs; ++v) {
      float* acc = op.acc + r * op.acc_stride + v * kLanes;
      const FloatVec scale = hn::Mul(x_scale, hn::LoadU(d, op.w_scales + v * kLanes));
      const FloatVec before = op.resume ? hn::LoadU(d, acc) : hn::Zero(d);
      hn::StoreU(hn::MulAdd(hn::ConvertTo(d, sum[r][v]), scale, before), d, acc);
    }
  }
}

// Strip s of `wide` holds columns [s * kTileColumns, (s + 1) * kTileColumns) as (pairs, kTileColumns, 2).
static_assert(kInt8Group * kPanel * 2 <= kWideK * kWideColumns * 4, "scratch holds all strips of a group");
HWY_INLINE void widen_pairs(const std::int8_t* HWY_RESTRICT q, std::int64_t pairs, std::int16_t* HWY_RESTRICT wide) {
  constexpr std::int64_t kStep = 2 * kTileColumns;
  for (std::int64_t p = 0; p < pairs; ++p) {
    for (std::int64_t s = 0; s < kPanel / kTileColumns; ++s) {
      std::int16_t* strip = wide + (s * pairs + p) * kStep;
      for (std::int64_t c = 0; c < kStep; c += 2 * kLanes) {
        hn::StoreU(load_pairs(q + p * 2 * kPanel + s * kStep + c), PairTag(), strip + c);
      }
    }
  }
}

// All rows against a group of a panel, widened: tile by tile over all strips, which stay in L1 together.
template <bool kVnni>
HWY_INLINE void accumulate_strips(std::int64_t rows, Int8Operands<kVnni> op, const std::int16_t* wide) {
  constexpr std::int64_t kStrips = kPanel / kTileColumns;
  const std::int64_t fetch = op.prefetch_step * op.k_count;
  for (std::int64_t t = tile_count(rows); t > 0; --t) {
    const std::int64_t height = (rows + t - 1) / t;
    Int8Operands<kVnni> strip = op;
    for (std::int64_t s = 0; s < kStrips; ++s) {
      tile_rows<kTileUnits>(height, strip, wide + s * op.k_count * 2 * kTileColumns, 2 * kTileColumns);
      strip.skip_columns(kTileColumns);
      strip.prefetch += fetch;
    }
    op.skip_rows(height);
    op.prefetch = strip.prefetch;
    rows -= height;
  }
}

// Sums of a task into scratch.partial; up to `direct_rows` rows read the panels as they are, one after the other, up to
// kStreamRows of them each line once. More rows go group by group over all panels, so that the rows of a group stay in
// L2.
template <bool kVnni>
HWY_INLINE void sum_panels_int8(const LinearArgs& args, const LinearTask& task, std::int64_t direct_rows,
                                const Scratch& scratch) {
  const Int8Layout layout{args.in, args.out};
  const std::int64_t groups = int8_groups(args.in);
  const bool direct = task.rows <= direct_rows;
  const bool stream = task.rows <= kStreamRows;
  const std::int64_t tiles = stream   ? 1
                             : direct ? tile_total(task.rows, kPanelUnits)
                                      : tile_count(task.rows) * (kPanel / kTileColumns);
  const std::int64_t fetch = (2 * kPanel + tiles - 1) / tiles;
  for (std::int64_t step = 0; step < groups * task.panels; ++step) {
    const std::int64_t g = direct ? step % groups : step / task.panels;
    const std::int64_t p = direct ? step / groups : step % task.panels;
    const std::byte* group = static_cast<const std::byte*>(args.weights) + layout.group_begin(task.panel + p, g);
    const std::int64_t pairs = layout.pairs(g);
    const auto* q = reinterpret_cast<const std::int8_t*>(group + Int8Layout::kScaleBytes);
    // Meanwhile what comes next is fetched.
    const auto* next = reinterpret_cast<const char*>(q + pairs * 2 * kPanel);
    if (stream) {
      next = reinterpret_cast<const char*>(q) + args.fetch_ahead;
    } else if (!direct) {
      next = p + 1 < task.panels ? reinterpret_cast<const char*>(group) + layout.panel_bytes()
                                 : next - p * layout.panel_bytes();
    }
    const Int8Operands<kVnni> op{args.quantized.pairs + task.first_row * args.quantized.stride,
                                 args.quantized.stride,
                                 g * kInt8Group / 2,
                                 args.quantized.scales + task.first_row * args.quantized.groups + g,
                                 args.quantized.groups,
                                 reinterpret_cast<const float*>(group),
                                 pairs,
                                 scratch.partial + p * task.rows * kPanel,
                                 kPanel,
                                 g > 0,
                                 next,
                                 fetch};
    if (stream) {
      stream_panel(task.rows, op, q, 2 * kPanel);
    } else if (direct) {
      accumulate(task.rows, kPanelUnits, op, q, 2 * kPanel);
    } else {
      auto* wide = reinterpret_cast<std::int16_t*>(scratch.wide);
      widen_pairs(q, pairs, wide);
      accumulate_strips(task.rows, op, wide);
    }
  }
}

}  // namespace stagecoach::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
#endif
