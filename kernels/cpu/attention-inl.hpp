// out(r) = softmax(scale q K^T) V over the pages of the row's sequence, tile by tile (a tile is a page),
// without ever holding more than one tile of scores.
//
// Per tile t of keys: s = scale * (q K^T); m_t = max s; p = exp(s - m_t); l_t = sum p; o_t = p V. Merged in
// tile order:
//   m' = max(m, m_t);  a = exp(m - m');  b = exp(m_t - m');  l = l a + l_t b;  o = o a + o_t b.  In the end
//   out = o / l.
// Keys beyond the row's position are masked before the maximum and never multiplied with their value, so
// whatever the page holds there cannot matter. Rows of a group share the reads of a tile; each row's
// operations are its own.
#if defined(STAGECOACH_CPU_ATTENTION_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef STAGECOACH_CPU_ATTENTION_INL
#undef STAGECOACH_CPU_ATTENTION_INL
#else
#define STAGECOACH_CPU_ATTENTION_INL
#endif

#include <limits>
#include <utility>

#include "kernels/cpu/kernels.hpp"
#include "kernels/cpu/lanes-inl.hpp"
#include "kernels/cpu/math-inl.hpp"
#include "kernels/cpu/tile-inl.hpp"

#if HWY_TARGET & STAGECOACH_SIMD_TARGETS
HWY_BEFORE_NAMESPACE();
namespace stagecoach::cpu::HWY_NAMESPACE {

// Running state of the rows of a group, in the thread's scratch.
struct AttentionState {
  float* q;  // (kGroupRows, q_stride): the head's queries
  std::int64_t q_stride;
  float* scores;    // (kGroupRows, kScoreStride), then the probabilities
  float* tile_out;  // (kGroupRows, value_width): o_t
  float* out;       // (kGroupRows, value_width): o
  // One value per row, (kRowSlots):
  float* largest;       // m
  float* sum;           // l
  float* tile_sum;      // l_t
  float* tile_largest;  // m_t
  float* keep;          // a
  float* take;          // b
};
// Vectors over rows may begin at any row and reach past the last one.
inline constexpr std::int64_t kRowSlots = kGroupRows + kUnit;

HWY_INLINE AttentionState attention_state(float* scratch, std::int64_t width) {
  AttentionState state;
  state.q_stride = width + kRowPad;
  const auto take = [&scratch](std::int64_t floats) { return std::exchange(scratch, scratch + floats); };
  state.q = take(kGroupRows * state.q_stride);
  state.scores = take(kGroupRows * kScoreStride);
  state.tile_out = take(kGroupRows * width);
  state.out = take(kGroupRows * width);
  for (float** values : {&state.largest, &state.sum, &state.tile_sum, &state.tile_largest, &state.keep, &state.take}) {
    *values = take(kRowSlots);
  }
  return state;
}

// Scores of one row become probabilities relative to the tile's own maximum; keys from `valid` on become
// exactly 0.
HWY_INLINE void tile_softmax(float* scores, std::int64_t valid, float scale, float& largest, float& sum) {
  const FloatTag d;
  const FloatVec infinity = hn::Set(d, -std::numeric_limits<float>::infinity());
  const FloatVec iota = hn::Iota(d, 0.0F);
  const FloatVec scale_v = hn::Set(d, scale);
  FloatVec top = infinity;
  if (valid >= kPagePositions) {
    for (std::int64_t c = 0; c < kPagePositions; c += kLanes) {
      const FloatVec s = hn::Mul(hn::LoadU(d, scores + c), scale_v);
      hn::StoreU(s, d, scores + c);
      top = hn::Max(top, s);
    }
  } else {
    for (std::int64_t c = 0; c < kPagePositions; c += kLanes) {
      const auto masked = hn::Ge(iota, hn::Set(d, static_cast<float>(valid - c)));
      const FloatVec s = hn::IfThenElse(masked, infinity, hn::Mul(hn::LoadU(d, scores + c), scale_v));
      hn::StoreU(s, d, scores + c);
      top = hn::Max(top, s);
    }
  }
  largest = hn::GetLane(hn::MaxOfLanes(d, top));
  // A tile of nothing but -infinity (overflowed scores) has probabilities 0, not NaN.
  const FloatVec offset = hn::Set(d, largest == -std::numeric_limits<float>::infinity() ? 0.0F : largest);
  LaneSums lanes;
  for (std::int64_t c = 0; c < kPagePositions; c += kUnit) {
    for (int v = 0; v < kUnitVecs; ++v) {
      float* at = scores + c + v * kLanes;
      const FloatVec p = exp_v(d, hn::Sub(hn::LoadU(d, at), offset));
      hn::StoreU(p, d, at);
      lanes.sum[v] = hn::Add(lanes.sum[v], p);
    }
  }
  sum = lanes.reduce();
}

// Merges o_t into o for rows [begin, end). The factors are computed for a vector of rows at a time.
HWY_INLINE void merge_tile(const AttentionState& state, std::int64_t begin, std::int64_t end, std::int64_t width,
                           bool first) {
  const FloatTag d;
  if (first) {
    std::copy(state.tile_out + begin * width, state.tile_out + end * width, state.out + begin * width);
    std::copy(state.tile_largest + begin, state.tile_largest + end, state.largest + begin);
    std::copy(state.tile_sum + begin, state.tile_sum + end, state.sum + begin);
    return;
  }
  const FloatVec none = hn::Set(d, -std::numeric_limits<float>::infinity());
  for (std::int64_t r = begin; r < end; r += kLanes) {
    const FloatVec before = hn::LoadU(d, state.largest + r);
    const FloatVec tile = hn::LoadU(d, state.tile_largest + r);
    const FloatVec largest = hn::Max(before, tile);
    const FloatVec offset = hn::IfThenZeroElse(hn::Eq(largest, none), largest);
    const FloatVec keep = exp_v(d, hn::Sub(before, offset));
    const FloatVec take = exp_v(d, hn::Sub(tile, offset));
    const FloatVec sum = hn::Mul(hn::LoadU(d, state.sum + r), keep);
    hn::StoreU(hn::MulAdd(hn::LoadU(d, state.tile_sum + r), take, sum), d, state.sum + r);
    hn::StoreU(largest, d, state.largest + r);
    hn::StoreU(keep, d, state.keep + r);
    hn::StoreU(take, d, state.take + r);
  }
  for (std::int64_t r = begin; r < end; ++r) {
    float* out = state.out + r * width;
    const float* tile_out = state.tile_out + r * width;
    const FloatVec keep = hn::Set(d, state.keep[r]);
    const FloatVec take = hn::Set(d, state.take[r]);
    for (std::int64_t c = 0; c < width; c += kLanes) {
      const FloatVec kept = hn::Mul(hn::LoadU(d, out + c), keep);
      hn::StoreU(hn::MulAdd(hn::LoadU(d, tile_out + c), take, kept), d, out + c);
    }
  }
}

// Bytes that a product of `rows` rows, `units` units and k fetches per step, so that it fetches `elements` of W in all.
template <class W>
HWY_INLINE std::int64_t fetch_step(std::int64_t elements, std::int64_t rows, std::int64_t units, std::int64_t k) {
  if (rows == 1) return 0;  // one row is a plain stream, which the hardware sees coming
  const std::int64_t steps = tile_total(rows, units) * k;
  return (elements * static_cast<std::int64_t>(sizeof(W)) + steps - 1) / steps;
}

// One tile for rows [begin, group.rows): those that see at least one of its keys.
template <class W>
HWY_INLINE void attend_tile(const AttentionArgs& args, const AttentionGroup& group, std::int64_t head, std::int64_t t,
                            std::int64_t tiles, std::int64_t begin, const AttentionState& state) {
  const PageLayout& layout = args.layout;
  const std::int64_t width = layout.value_width();
  const W* page = reinterpret_cast<const W*>(args.pages + group.table[t] * args.page_bytes);
  const W* keys = page + layout.key_begin(head);
  const W* values = page + layout.value_begin(head);
  const std::int64_t rows = group.rows - begin;
  // What comes next is fetched meanwhile: values during scores, the next tile's keys during values.
  const W* next_keys = t + 1 < tiles ? reinterpret_cast<const W*>(args.pages + group.table[t + 1] * args.page_bytes) +
                                           layout.key_begin(head)
                                     : keys;
  float* scores = state.scores + begin * kScoreStride;
  accumulate(rows, kPagePositions / kUnit,
             TileOperands{state.q + begin * state.q_stride, state.q_stride, 0, layout.head_dim, scores, kScoreStride,
                          reinterpret_cast<const char*>(values),
                          fetch_step<W>(kPagePositions * width, rows, kPagePositions / kUnit, layout.head_dim)},
             keys, kPagePositions);
  std::int64_t whole = begin;  // rows from here on see the whole tile
  for (std::int64_t r = begin; r < group.rows; ++r) {
    const std::int64_t valid = std::min<std::int64_t>(group.positions[r] - t * kPagePositions + 1, kPagePositions);
    tile_softmax(state.scores + r * kScoreStride, valid, args.scale, state.tile_largest[r], state.tile_sum[r]);
    float* out = state.tile_out + r * width;
    if (valid == kPagePositions) continue;
    whole = r + 1;
    accumulate(1, width / kUnit,
               TileOperands{state.scores + r * kScoreStride, 0, 0, valid, out, width,
                            reinterpret_cast<const char*>(next_keys), 0},
               values, width);
  }
  if (whole < group.rows) {
    accumulate(group.rows - whole, width / kUnit,
               TileOperands{
                   state.scores + whole * kScoreStride, kScoreStride, 0, kPagePositions, state.tile_out + whole * width,
                   width, reinterpret_cast<const char*>(next_keys),
                   fetch_step<W>(kPagePositions * layout.head_dim, group.rows - whole, width / kUnit, kPagePositions)},
               values, width);
  }
  merge_tile(state, begin, group.rows, width, t == 0);
}

template <class W>
HWY_INLINE void attend_group(const AttentionArgs& args, const AttentionGroup& group, std::int64_t head,
                             float* scratch) {
  const std::int64_t width = args.layout.value_width();
  const AttentionState state = attention_state(scratch, width);
  const std::int64_t tiles = group.positions[group.rows - 1] / kPagePositions + 1;
  for (std::int64_t r = 0; r < group.rows; ++r) {
    std::copy_n(args.qkv + (group.first_row + r) * args.qkv_stride + head * args.layout.head_dim, args.layout.head_dim,
                state.q + r * state.q_stride);
  }
  std::int64_t begin = 0;
  for (std::int64_t t = 0; t < tiles; ++t) {
    while (group.positions[begin] < t * kPagePositions) ++begin;
    attend_tile<W>(args, group, head, t, tiles, begin, state);
  }
  for (std::int64_t r = 0; r < group.rows; ++r) {
    float* out = args.out + (group.first_row + r) * args.out_stride + head * args.layout.head_dim;
    for (std::int64_t d = 0; d < args.layout.head_dim; ++d) out[d] = state.out[r * width + d] / state.sum[r];
  }
}

void attend(const AttentionArgs& args, const AttentionGroup& group, std::int64_t head, float* scratch) {
  switch (args.dtype) {
    case DType::kFloat32:
      return attend_group<float>(args, group, head, scratch);
    case DType::kFloat16:
      return attend_group<hwy::float16_t>(args, group, head, scratch);
    case DType::kBFloat16:
      return attend_group<hwy::bfloat16_t>(args, group, head, scratch);
    case DType::kInt8:
      break;
  }
}

// Writes K and V of one row, all heads, at `slot` of `page`; scratch holds head_dim floats.
template <class T>
HWY_INLINE void append_row(const AttentionArgs& args, std::int64_t row, std::byte* page, std::int64_t slot,
                           float* scratch) {
  const PageLayout& layout = args.layout;
  T* elements = reinterpret_cast<T*>(page);
  T* narrow_keys = reinterpret_cast<T*>(scratch);
  const float* k = args.qkv + row * args.qkv_stride + layout.n_head * layout.head_dim;
  const float* v = k + layout.n_head * layout.head_dim;
  for (std::int64_t h = 0; h < layout.n_head; ++h, k += layout.head_dim, v += layout.head_dim) {
    narrow_row(k, narrow_keys, layout.head_dim);
    T* keys = elements + layout.key_begin(h);
    for (std::int64_t d = 0; d < layout.head_dim; ++d)
      hwy::CopyBytes<sizeof(T)>(narrow_keys + d, keys + layout.key_index(d, slot));
    narrow_row(v, elements + layout.value_begin(h) + layout.value_index(slot, 0), layout.head_dim);
  }
}

void append(const AttentionArgs& args, std::int64_t row, std::byte* page, std::int64_t slot, float* scratch) {
  switch (args.dtype) {
    case DType::kFloat32:
      return append_row<float>(args, row, page, slot, scratch);
    case DType::kFloat16:
      return append_row<hwy::float16_t>(args, row, page, slot, scratch);
    case DType::kBFloat16:
      return append_row<hwy::bfloat16_t>(args, row, page, slot, scratch);
    case DType::kInt8:
      break;
  }
}

}  // namespace stagecoach::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
#endif
