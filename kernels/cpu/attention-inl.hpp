// out(r) = softmax(scale q K^T) V over the pages of the row's sequence, tile by tile (a tile is a page),
// without ever holding more than one tile of scores.
//
// Per tile of keys, in order: s = q K^T;  m' = max(m, max s);  a = exp(scale (m - m'));  p = exp(scale (s - m'));
//   l = l a + sum p;  o = o a + p V
// over the tiles of a segment (kSegmentPages), beginning with m = -infinity. a is nearly always 1, and then nothing is
// multiplied with it. Segments are merged in order, m now with the scale:
//   m' = max(m, m_t);  a = exp(m - m');  b = exp(m_t - m');  l = l a + l_t b;  o = o a + o_t b
// In the end out = o / l (Milakov and Gimelshein, arXiv 1805.02867; Dao et al., arXiv 2205.14135).
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

// Of some keys, for the slots of a task: the rows of its group, or the heads of its only row.
struct SoftmaxSums {
  float* out;      // (kGroupRows, value_width): o
  float* largest;  // m, (kSlots)
  float* sum;      // l, (kSlots)
};

// Running state of a task's slots, in the thread's scratch.
struct AttentionState {
  float* q;  // (kGroupRows, q_stride): queries
  std::int64_t q_stride;
  float* scores;  // (kGroupRows, kScoreStride), then the probabilities
  float* lanes;   // (kGroupRows, kUnit): l of the segment, by lanes, until it is complete
  SoftmaxSums segment, all;
  float* keep;  // a, (kSlots)
  float* take;  // b
};
// Vectors over slots may begin at any slot and reach past the last one.
inline constexpr std::int64_t kSlots = kGroupRows + kUnit;

HWY_INLINE AttentionState attention_state(float* scratch, std::int64_t width) {
  AttentionState state;
  state.q_stride = width + kRowPad;
  const auto take = [&scratch](std::int64_t floats) { return std::exchange(scratch, scratch + floats); };
  state.q = take(kGroupRows * state.q_stride);
  state.scores = take(kGroupRows * kScoreStride);
  state.lanes = take(kGroupRows * kUnit);
  for (SoftmaxSums* sums : {&state.segment, &state.all}) {
    sums->out = take(kGroupRows * width);
    sums->largest = take(kSlots);
    sums->sum = take(kSlots);
  }
  state.keep = take(kSlots);
  state.take = take(kSlots);
  return state;
}

// Slots [begin, end) begin a segment.
HWY_INLINE void begin_segment(const AttentionState& state, std::int64_t begin, std::int64_t end, std::int64_t width) {
  std::fill(state.lanes + begin * kUnit, state.lanes + end * kUnit, 0.0F);
  std::fill(state.segment.out + begin * width, state.segment.out + end * width, 0.0F);
  std::fill(state.segment.largest + begin, state.segment.largest + end, -std::numeric_limits<float>::infinity());
}

HWY_INLINE void end_segment(const AttentionState& state, std::int64_t begin, std::int64_t end, float scale) {
  for (std::int64_t r = begin; r < end; ++r) {
    state.segment.sum[r] = LaneSums(state.lanes + r * kUnit).reduce();
    state.segment.largest[r] *= scale;
  }
}

// The scores of slot r become probabilities relative to the largest score so far, and the sums so far as well; keys
// from `valid` on become exactly 0.
HWY_INLINE void tile_softmax(const AttentionState& state, std::int64_t r, std::int64_t valid, float scale,
                             std::int64_t width) {
  const FloatTag d;
  const FloatVec none = hn::Set(d, -std::numeric_limits<float>::infinity());
  float* scores = state.scores + r * kScoreStride;
  FloatVec top = none;
  if (valid >= kPagePositions) {
    for (std::int64_t c = 0; c < kPagePositions; c += kLanes) top = hn::Max(top, hn::LoadU(d, scores + c));
  } else {
    const FloatVec iota = hn::Iota(d, 0.0F);
    for (std::int64_t c = 0; c < kPagePositions; c += kLanes) {
      const auto masked = hn::Ge(iota, hn::Set(d, static_cast<float>(valid - c)));
      const FloatVec s = hn::IfThenElse(masked, none, hn::LoadU(d, scores + c));
      hn::StoreU(s, d, scores + c);
      top = hn::Max(top, s);
    }
  }
  const FloatVec factor = hn::Set(d, scale * kLog2E);
  FloatVec largest = hn::Set(d, state.segment.largest[r]);
  LaneSums lanes(state.lanes + r * kUnit);
  if (!hn::AllFalse(d, hn::Gt(top, largest))) {
    const FloatVec before = largest;
    largest = hn::MaxOfLanes(d, hn::Max(top, largest));
    state.segment.largest[r] = hn::GetLane(largest);
    const FloatVec keep = exp2_of_negative(d, hn::Sub(before, largest), factor);
    for (FloatVec& sum : lanes.sum) sum = hn::Mul(sum, keep);
    float* out = state.segment.out + r * width;
    for (std::int64_t c = 0; c < width; c += kLanes) hn::StoreU(hn::Mul(hn::LoadU(d, out + c), keep), d, out + c);
  }
  // Of nothing but -infinity (overflowed scores) the probabilities are 0, not NaN.
  const FloatVec offset = hn::IfThenZeroElse(hn::Eq(largest, none), largest);
  for (std::int64_t c = 0; c < kPagePositions; c += kUnit) {
    for (int v = 0; v < kUnitVecs; ++v) {
      float* at = scores + c + v * kLanes;
      const FloatVec p = exp2_of_negative(d, hn::Sub(hn::LoadU(d, at), offset), factor);
      hn::StoreU(p, d, at);
      lanes.sum[v] = hn::Add(lanes.sum[v], p);
    }
  }
  lanes.store(state.lanes + r * kUnit);
}

// Merges `next` into `into` for slots [begin, end). The factors are computed for a vector of slots at a time.
HWY_INLINE void merge_sums(const AttentionState& state, const SoftmaxSums& next, const SoftmaxSums& into,
                           std::int64_t begin, std::int64_t end, std::int64_t width, bool first) {
  const FloatTag d;
  if (first) {
    std::copy(next.out + begin * width, next.out + end * width, into.out + begin * width);
    std::copy(next.largest + begin, next.largest + end, into.largest + begin);
    std::copy(next.sum + begin, next.sum + end, into.sum + begin);
    return;
  }
  const FloatVec none = hn::Set(d, -std::numeric_limits<float>::infinity());
  const FloatVec log2e = hn::Set(d, kLog2E);
  for (std::int64_t r = begin; r < end; r += kLanes) {
    const FloatVec before = hn::LoadU(d, into.largest + r);
    const FloatVec added = hn::LoadU(d, next.largest + r);
    const FloatVec largest = hn::Max(before, added);
    const FloatVec offset = hn::IfThenZeroElse(hn::Eq(largest, none), largest);
    const FloatVec keep = exp2_of_negative(d, hn::Sub(before, offset), log2e);
    const FloatVec take = exp2_of_negative(d, hn::Sub(added, offset), log2e);
    const FloatVec sum = hn::Mul(hn::LoadU(d, into.sum + r), keep);
    hn::StoreU(hn::MulAdd(hn::LoadU(d, next.sum + r), take, sum), d, into.sum + r);
    hn::StoreU(largest, d, into.largest + r);
    hn::StoreU(keep, d, state.keep + r);
    hn::StoreU(take, d, state.take + r);
  }
  for (std::int64_t r = begin; r < end; ++r) {
    float* out = into.out + r * width;
    const float* added = next.out + r * width;
    const FloatVec keep = hn::Set(d, state.keep[r]);
    const FloatVec take = hn::Set(d, state.take[r]);
    for (std::int64_t c = 0; c < width; c += kLanes) {
      const FloatVec kept = hn::Mul(hn::LoadU(d, out + c), keep);
      hn::StoreU(hn::MulAdd(hn::LoadU(d, added + c), take, kept), d, out + c);
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

// One tile for rows [begin, group.rows): those that see at least one of its keys. `end`: of the tiles that follow.
template <class W>
HWY_INLINE void attend_tile(const AttentionArgs& args, const AttentionGroup& group, std::int64_t head, std::int64_t t,
                            std::int64_t end, std::int64_t begin, const AttentionState& state) {
  const PageLayout& layout = args.layout;
  const std::int64_t width = layout.value_width();
  const W* page = reinterpret_cast<const W*>(args.pages + group.table[t] * args.page_bytes);
  const W* keys = page + layout.key_begin(head);
  const W* values = page + layout.value_begin(head);
  const std::int64_t rows = group.rows - begin;
  // What comes next is fetched meanwhile: values during scores, the next tile's keys during values.
  const W* next_keys = t + 1 < end ? reinterpret_cast<const W*>(args.pages + group.table[t + 1] * args.page_bytes) +
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
    tile_softmax(state, r, valid, args.scale, width);
    if (valid == kPagePositions) continue;
    whole = r + 1;
    accumulate(1, width / kUnit,
               ContinuedOperands{state.scores + r * kScoreStride, kScoreStride, 0, valid, state.segment.out + r * width,
                                 width, reinterpret_cast<const char*>(next_keys), 0},
               values, width);
  }
  if (whole < group.rows) {
    accumulate(group.rows - whole, width / kUnit,
               ContinuedOperands{
                   state.scores + whole * kScoreStride, kScoreStride, 0, kPagePositions,
                   state.segment.out + whole * width, width, reinterpret_cast<const char*>(next_keys),
                   fetch_step<W>(kPagePositions * layout.head_dim, group.rows - whole, width / kUnit, kPagePositions)},
               values, width);
  }
}

// One tile for the only row of a group and several heads. What they read is one piece of memory, so long that the
// hardware sees it coming: one head at a time reads at half the speed.
template <class W>
HWY_INLINE void attend_tile_of_heads(const AttentionArgs& args, const AttentionGroup& group, AttentionHeads heads,
                                     std::int64_t t, const AttentionState& state) {
  constexpr auto kBytes = static_cast<std::int64_t>(sizeof(W));
  const PageLayout& layout = args.layout;
  const std::int64_t width = layout.value_width();
  const W* page = reinterpret_cast<const W*>(args.pages + group.table[t] * args.page_bytes);
  const std::int64_t valid = std::min<std::int64_t>(group.positions[0] - t * kPagePositions + 1, kPagePositions);
  for (std::int64_t h = 0; h < heads.count; ++h) {
    const W* keys = page + layout.key_begin(heads.first + h);
    const W* values = page + layout.value_begin(heads.first + h);
    float* scores = state.scores + h * kScoreStride;
    accumulate(1, kPagePositions / kUnit,
               TileOperands{state.q + h * state.q_stride, state.q_stride, 0, layout.head_dim, scores, kScoreStride,
                            reinterpret_cast<const char*>(keys) + args.fetch_ahead, kPagePositions * kBytes},
               keys, kPagePositions);
    tile_softmax(state, h, valid, args.scale, width);
    accumulate(1, width / kUnit,
               ContinuedOperands{scores, kScoreStride, 0, valid, state.segment.out + h * width, width,
                                 reinterpret_cast<const char*>(values) + args.fetch_ahead, width * kBytes},
               values, width);
  }
}

// What a slot of a task stands for.
struct SlotOwner {
  std::int64_t row, head;
};
HWY_INLINE std::int64_t slot_count(const AttentionGroup& group, AttentionHeads heads) {
  return group.rows == 1 ? heads.count : group.rows;
}
HWY_INLINE SlotOwner slot_owner(const AttentionGroup& group, AttentionHeads heads, std::int64_t slot) {
  return group.rows == 1 ? SlotOwner{0, heads.first + slot} : SlotOwner{slot, heads.first};
}

HWY_INLINE void load_queries(const AttentionArgs& args, const AttentionGroup& group, AttentionHeads heads,
                             const AttentionState& state) {
  for (std::int64_t s = 0; s < slot_count(group, heads); ++s) {
    const SlotOwner owner = slot_owner(group, heads, s);
    std::copy_n(args.qkv + (group.first_row + owner.row) * args.qkv_stride + owner.head * args.layout.head_dim,
                args.layout.head_dim, state.q + s * state.q_stride);
  }
}

// state.segment becomes that of one segment, for the slots that see any of its keys; returns the first of these.
template <class W>
HWY_INLINE std::int64_t attend_segment(const AttentionArgs& args, const AttentionGroup& group, AttentionHeads heads,
                                       std::int64_t segment, const AttentionState& state) {
  const std::int64_t first = segment * kSegmentPages;
  const std::int64_t tiles = group.positions[group.rows - 1] / kPagePositions + 1;
  const std::int64_t end = std::min<std::int64_t>(tiles, first + kSegmentPages);
  const std::int64_t width = args.layout.value_width();
  if (group.rows == 1) {
    begin_segment(state, 0, heads.count, width);
    for (std::int64_t t = first; t < end; ++t) attend_tile_of_heads<W>(args, group, heads, t, state);
    end_segment(state, 0, heads.count, args.scale);
    return 0;
  }
  std::int64_t begin = 0;
  while (group.positions[begin] < first * kPagePositions) ++begin;
  const std::int64_t seen_from = begin;
  begin_segment(state, seen_from, group.rows, width);
  for (std::int64_t t = first; t < end; ++t) {
    while (group.positions[begin] < t * kPagePositions) ++begin;
    attend_tile<W>(args, group, heads.first, t, end, begin, state);
  }
  end_segment(state, seen_from, group.rows, args.scale);
  return seen_from;
}

template <class W>
HWY_INLINE void attend_group(const AttentionArgs& args, const AttentionGroup& group, AttentionHeads heads,
                             float* scratch) {
  const std::int64_t width = args.layout.value_width();
  const std::int64_t head_dim = args.layout.head_dim;
  const std::int64_t slots = slot_count(group, heads);
  const AttentionState state = attention_state(scratch, width);
  load_queries(args, group, heads, state);
  const std::int64_t segments = group.positions[group.rows - 1] / kSegmentPositions + 1;
  for (std::int64_t i = 0; i < segments; ++i) {
    const std::int64_t begin = attend_segment<W>(args, group, heads, i, state);
    if (segments > 1) merge_sums(state, state.segment, state.all, begin, slots, width, i == 0);
  }
  const SoftmaxSums& sums = segments > 1 ? state.all : state.segment;
  for (std::int64_t s = 0; s < slots; ++s) {
    const SlotOwner owner = slot_owner(group, heads, s);
    float* out = args.out + (group.first_row + owner.row) * args.out_stride + owner.head * head_dim;
    for (std::int64_t d = 0; d < head_dim; ++d) out[d] = sums.out[s * width + d] / sums.sum[s];
  }
}

void attend(const AttentionArgs& args, const AttentionGroup& group, AttentionHeads heads, float* scratch) {
  switch (args.dtype) {
    case DType::kFloat32:
      return attend_group<float>(args, group, heads, scratch);
    case DType::kFloat16:
      return attend_group<hwy::float16_t>(args, group, heads, scratch);
    case DType::kBFloat16:
      return attend_group<hwy::bfloat16_t>(args, group, heads, scratch);
    case DType::kInt8:
      break;
  }
}

// One segment of a group, into the rows' parts.
template <class W>
HWY_INLINE void attend_group_part(const AttentionArgs& args, const AttentionGroup& group, AttentionHeads heads,
                                  const SegmentParts& parts, float* scratch) {
  const std::int64_t width = args.layout.value_width();
  const std::int64_t head_dim = args.layout.head_dim;
  const std::int64_t slots = slot_count(group, heads);
  const AttentionState state = attention_state(scratch, width);
  load_queries(args, group, heads, state);
  for (std::int64_t s = attend_segment<W>(args, group, heads, parts.segment, state); s < slots; ++s) {
    const SlotOwner owner = slot_owner(group, heads, s);
    float* part = parts.data + (parts.first[owner.row] + parts.ordinal) * parts.stride;
    std::copy_n(state.segment.out + s * width, head_dim, part + owner.head * head_dim);
    float* scalars = part + args.layout.n_head * head_dim + 2 * owner.head;
    scalars[0] = state.segment.largest[s];
    scalars[1] = state.segment.sum[s];
  }
}

void attend_part(const AttentionArgs& args, const AttentionGroup& group, AttentionHeads heads,
                 const SegmentParts& parts, float* scratch) {
  switch (args.dtype) {
    case DType::kFloat32:
      return attend_group_part<float>(args, group, heads, parts, scratch);
    case DType::kFloat16:
      return attend_group_part<hwy::float16_t>(args, group, heads, parts, scratch);
    case DType::kBFloat16:
      return attend_group_part<hwy::bfloat16_t>(args, group, heads, parts, scratch);
    case DType::kInt8:
      break;
  }
}

// As attend_group merges the segments of one row.
void merge_parts(const PageLayout& layout, std::span<const float* const> parts, float* out, float* scratch) {
  const std::int64_t width = layout.value_width();
  const AttentionState state = attention_state(scratch, width);
  for (std::int64_t head = 0; head < layout.n_head; ++head) {
    for (std::size_t i = 0; i < parts.size(); ++i) {
      const float* scalars = parts[i] + layout.n_head * layout.head_dim + 2 * head;
      std::copy_n(parts[i] + head * layout.head_dim, layout.head_dim, state.segment.out);
      state.segment.largest[0] = scalars[0];
      state.segment.sum[0] = scalars[1];
      merge_sums(state, state.segment, state.all, 0, 1, width, i == 0);
    }
    for (std::int64_t d = 0; d < layout.head_dim; ++d)
      out[head * layout.head_dim + d] = state.all.out[d] / state.all.sum[0];
  }
}

// Writes K and V of one row and some heads at `slot` of `page`; scratch holds head_dim floats.
template <class T>
HWY_INLINE void append_row(const AttentionArgs& args, std::int64_t row, AttentionHeads heads, std::byte* page,
                           std::int64_t slot, float* scratch) {
  const PageLayout& layout = args.layout;
  T* elements = reinterpret_cast<T*>(page);
  T* narrow_keys = reinterpret_cast<T*>(scratch);
  const float* k = args.qkv + row * args.qkv_stride + (layout.n_head + heads.first) * layout.head_dim;
  const float* v = k + layout.n_head * layout.head_dim;
  for (std::int64_t h = heads.first; h < heads.first + heads.count; ++h, k += layout.head_dim, v += layout.head_dim) {
    narrow_row(k, narrow_keys, layout.head_dim);
    T* keys = elements + layout.key_begin(h);
    if (h + 1 < heads.first + heads.count) {  // each element of K is on a cache line of its own
      const T* next = elements + layout.key_begin(h + 1);
      for (std::int64_t d = 0; d < layout.head_dim; ++d) hwy::Prefetch(next + layout.key_index(d, slot));
    }
    for (std::int64_t d = 0; d < layout.head_dim; ++d)
      hwy::CopyBytes<sizeof(T)>(narrow_keys + d, keys + layout.key_index(d, slot));
    narrow_row(v, elements + layout.value_begin(h) + layout.value_index(slot, 0), layout.head_dim);
  }
}

void append(const AttentionArgs& args, std::int64_t row, AttentionHeads heads, std::byte* page, std::int64_t slot,
            float* scratch) {
  switch (args.dtype) {
    case DType::kFloat32:
      return append_row<float>(args, row, heads, page, slot, scratch);
    case DType::kFloat16:
      return append_row<hwy::float16_t>(args, row, heads, page, slot, scratch);
    case DType::kBFloat16:
      return append_row<hwy::bfloat16_t>(args, row, heads, page, slot, scratch);
    case DType::kInt8:
      break;
  }
}

}  // namespace stagecoach::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
#endif
