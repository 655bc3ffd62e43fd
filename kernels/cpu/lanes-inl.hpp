// Sums over 16 logical lanes with a fixed tree, and conversions of a row of elements.
#if defined(STAGECOACH_CPU_LANES_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef STAGECOACH_CPU_LANES_INL
#undef STAGECOACH_CPU_LANES_INL
#else
#define STAGECOACH_CPU_LANES_INL
#endif

#include <bit>

#include <hwy/highway.h>
#include "kernels/convert.hpp"
#include "kernels/cpu/tile-inl.hpp"

#if HWY_TARGET & STAGECOACH_SIMD_TARGETS
HWY_BEFORE_NAMESPACE();
namespace stagecoach::cpu::HWY_NAMESPACE {

// Element c of a row goes to lane c mod 16; lanes are added as halves: 16 to 8 to 4 to 2 to 1.
struct LaneSums {
  FloatVec sum[kUnitVecs];

  HWY_INLINE LaneSums() {
    for (int v = 0; v < kUnitVecs; ++v) sum[v] = hn::Zero(FloatTag());
  }
  // Goes on from what store() left.
  HWY_INLINE explicit LaneSums(const float* from) {
    for (int v = 0; v < kUnitVecs; ++v) sum[v] = hn::LoadU(FloatTag(), from + v * kLanes);
  }
  HWY_INLINE void store(float* to) const {
    for (int v = 0; v < kUnitVecs; ++v) hn::StoreU(sum[v], FloatTag(), to + v * kLanes);
  }
  HWY_INLINE float reduce() const {
    FloatVec total[kUnitVecs];
    std::copy(sum, sum + kUnitVecs, total);
    for (int half = kUnitVecs / 2; half > 0; half /= 2) {
      for (int v = 0; v < half; ++v) total[v] = hn::Add(total[v], total[v + half]);
    }
    return add_halves(FloatTag(), total[0]);
  }

 private:
  template <class D>
  static HWY_INLINE float add_halves(D d, hn::VFromD<D> v) {
    if constexpr (hn::MaxLanes(D()) == 1) {
      return hn::GetLane(v);
    } else {
      const hn::Half<D> dh;
      return add_halves(dh, hn::Add(hn::LowerHalf(dh, v), hn::UpperHalf(dh, v)));
    }
  }
};

HWY_INLINE void store_narrow(FloatVec value, float* to) {
  hn::StoreU(value, FloatTag(), to);
}
HWY_INLINE void store_narrow(FloatVec value, hwy::float16_t* to) {
  const hn::Rebind<hwy::float16_t, FloatTag> dh;
  hn::StoreU(hn::DemoteTo(dh, value), dh, to);
}
// Round to nearest even on the bits, as in convert.hpp.
HWY_INLINE void store_narrow(FloatVec value, hwy::bfloat16_t* to) {
  const hn::RebindToUnsigned<FloatTag> du;
  const hn::RebindToSigned<FloatTag> di;
  const hn::Rebind<std::uint16_t, FloatTag> dh;
  const auto bits = hn::BitCast(du, value);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1U));
  const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7fffU))));
  const auto quiet = hn::Or(hn::ShiftRight<16>(bits), hn::Set(du, 0x40U));
  const auto chosen = hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(value)), quiet, rounded);
  hn::StoreU(hn::DemoteTo(dh, hn::BitCast(di, chosen)), dh, reinterpret_cast<std::uint16_t*>(to));
}

HWY_INLINE float load_one(const float* p) {
  return *p;
}
HWY_INLINE float load_one(const hwy::float16_t* p) {
  return f16_to_f32(std::bit_cast<std::uint16_t>(*p));
}
HWY_INLINE float load_one(const hwy::bfloat16_t* p) {
  return bf16_to_f32(std::bit_cast<std::uint16_t>(*p));
}
HWY_INLINE void store_one(float value, float* p) {
  *p = value;
}
HWY_INLINE void store_one(float value, hwy::float16_t* p) {
  *p = std::bit_cast<hwy::float16_t>(f32_to_f16(value));
}
HWY_INLINE void store_one(float value, hwy::bfloat16_t* p) {
  *p = std::bit_cast<hwy::bfloat16_t>(f32_to_bf16(value));
}

template <class T>
HWY_INLINE void narrow_row(const float* from, T* to, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store_narrow(hn::LoadU(FloatTag(), from + i), to + i);
  for (; i < n; ++i) store_one(from[i], to + i);
}
template <class T>
HWY_INLINE void widen_row(const T* from, float* to, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) hn::StoreU(load_wide(from + i), FloatTag(), to + i);
  for (; i < n; ++i) to[i] = load_one(from + i);
}

}  // namespace stagecoach::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
#endif
