// Row-wise kernels: layer norm, conversions, rounding to int8 and int16, and the element-wise functions by themselves.
#include "kernels/cpu/targets.hpp"

#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rows.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "kernels/cpu/kernels.hpp"
#include "kernels/cpu/lanes-inl.hpp"
#include "kernels/cpu/math-inl.hpp"

#if HWY_TARGET & STAGECOACH_SIMD_TARGETS
HWY_BEFORE_NAMESPACE();
namespace stagecoach::cpu::HWY_NAMESPACE {

// Sum over c of x(c) - mean, or of its square. The last, incomplete unit is filled up with `mean`, which adds
// 0.
template <bool kSquares>
HWY_INLINE float sum_row(const float* x, std::int64_t cols, float mean) {
  const FloatTag d;
  LaneSums lanes;
  for (std::int64_t c = 0; c < cols; c += kUnit) {
    alignas(64) float tail[kUnit];
    const float* unit = x + c;
    if (cols - c < kUnit) {
      std::fill(std::copy_n(x + c, cols - c, tail), tail + kUnit, mean);
      unit = tail;
    }
    for (int v = 0; v < kUnitVecs; ++v) {
      const FloatVec centred = hn::Sub(hn::LoadU(d, unit + v * kLanes), hn::Set(d, mean));
      lanes.sum[v] = kSquares ? hn::MulAdd(centred, centred, lanes.sum[v]) : hn::Add(lanes.sum[v], centred);
    }
  }
  return lanes.reduce();
}

// out = (x - mean) / sqrt(variance + epsilon) * gain + bias; mean first, then the variance around it. May
// work in place.
void layer_norm(const NormArgs& args, const float* x, float* out) {
  const FloatTag d;
  const auto n = static_cast<float>(args.cols);
  const float mean = sum_row<false>(x, args.cols, 0.0F) / n;
  const float variance = sum_row<true>(x, args.cols, mean) / n;
  const FloatVec root = hn::Sqrt(hn::Set(d, variance + args.epsilon));
  const FloatVec inverse = hn::Div(hn::Set(d, 1.0F), root);
  std::int64_t c = 0;
  for (; c + kLanes <= args.cols; c += kLanes) {
    const FloatVec normal = hn::Mul(hn::Sub(hn::LoadU(d, x + c), hn::Set(d, mean)), inverse);
    hn::StoreU(hn::MulAdd(normal, hn::LoadU(d, args.gain + c), hn::LoadU(d, args.bias + c)), d, out + c);
  }
  if (c == args.cols) return;
  float tail[3][kLanes] = {};
  std::copy_n(x + c, args.cols - c, tail[0]);
  std::copy_n(args.gain + c, args.cols - c, tail[1]);
  std::copy_n(args.bias + c, args.cols - c, tail[2]);
  const FloatVec normal = hn::Mul(hn::Sub(hn::LoadU(d, tail[0]), hn::Set(d, mean)), inverse);
  hn::StoreU(hn::MulAdd(normal, hn::LoadU(d, tail[1]), hn::LoadU(d, tail[2])), d, tail[0]);
  std::copy_n(tail[0], args.cols - c, out + c);
}

void widen(const void* from, DType dtype, float* to, std::int64_t n) {
  switch (dtype) {
    case DType::kFloat32:
      return widen_row(static_cast<const float*>(from), to, n);
    case DType::kFloat16:
      return widen_row(static_cast<const hwy::float16_t*>(from), to, n);
    case DType::kBFloat16:
      return widen_row(static_cast<const hwy::bfloat16_t*>(from), to, n);
    case DType::kInt8:
      break;
  }
}

void narrow(const float* from, void* to, DType dtype, std::int64_t n) {
  switch (dtype) {
    case DType::kFloat32:
      return narrow_row(from, static_cast<float*>(to), n);
    case DType::kFloat16:
      return narrow_row(from, static_cast<hwy::float16_t*>(to), n);
    case DType::kBFloat16:
      return narrow_row(from, static_cast<hwy::bfloat16_t*>(to), n);
    case DType::kInt8:
      break;
  }
}

// Values of one group of a row, `count` a multiple of kLanes. A group with a value that is not finite gets the scale
// NaN, so that every sum that it enters is NaN.
HWY_INLINE float quantize_whole(const float* x, std::int64_t count, std::int16_t* values) {
  constexpr float kLargest = 32767.0F;
  const FloatTag d;
  const hn::RebindToSigned<FloatTag> di;
  const hn::Rebind<std::int16_t, FloatTag> dh;
  FloatVec top = hn::Zero(d);
  FloatVec broken = hn::Zero(d);  // x - x is 0, or NaN
  for (std::int64_t c = 0; c < count; c += kLanes) {
    const FloatVec v = hn::LoadU(d, x + c);
    top = hn::Max(top, hn::Abs(v));
    broken = hn::Add(broken, hn::Sub(v, v));
  }
  const float nothing = hn::GetLane(hn::SumOfLanes(d, broken));
  if (std::isnan(nothing)) {
    std::fill_n(values, count, std::int16_t{0});
    return nothing;
  }
  const float largest = hn::GetLane(hn::MaxOfLanes(d, top));
  const bool zero = largest < kInt8Smallest;
  const FloatVec inverse = hn::Set(d, zero ? 0.0F : kLargest / largest);
  for (std::int64_t c = 0; c < count; c += kLanes) {
    const auto rounded = hn::NearestInt(hn::Mul(hn::LoadU(d, x + c), inverse));
    hn::StoreU(hn::DemoteTo(dh, hn::BitCast(di, rounded)), dh, values + c);
  }
  return zero ? 0.0F : largest / kLargest;
}

void quantize_row(const float* x, std::int64_t in, std::int16_t* values, float* scales) {
  for (std::int64_t g = 0; g < in; g += kInt8Group) {
    const std::int64_t count = std::min(kInt8Group, in - g);
    if (count == kInt8Group) {
      *scales++ = quantize_whole(x + g, kInt8Group, values + g);
      continue;
    }
    float filled[kInt8Group] = {};
    std::int16_t rounded[kInt8Group];
    std::copy_n(x + g, count, filled);
    *scales++ = quantize_whole(filled, kInt8Group, rounded);
    std::copy_n(rounded, round_up(count, 2), values + g);
  }
}

// As int8.hpp defines it, a vector of columns at a time.
void quantize_group(const float* weights, std::int64_t count, float* scales, std::int8_t* values) {
  const FloatTag d;
  const hn::RebindToSigned<FloatTag> di;
  const hn::Rebind<std::uint16_t, FloatTag> dh;
  for (std::int64_t n = 0; n < kPanel; n += kLanes) {
    FloatVec largest = hn::Zero(d);
    for (std::int64_t k = 0; k < count; ++k) {
      largest = hn::Max(largest, hn::Abs(hn::LoadU(d, weights + k * kPanel + n)));
    }
    const auto zero = hn::Lt(largest, hn::Set(d, kInt8Smallest));
    const FloatVec scale = hn::Div(largest, hn::Set(d, kInt8Largest));
    const FloatVec inverse = hn::IfThenZeroElse(zero, hn::Div(hn::Set(d, kInt8Largest), largest));
    hn::StoreU(hn::IfThenZeroElse(zero, scale), d, scales + n);
    const auto value = [&](std::int64_t k) {
      return k < count ? hn::NearestInt(hn::Mul(hn::LoadU(d, weights + k * kPanel + n), inverse)) : hn::Zero(di);
    };
    for (std::int64_t k = 0; k < count; k += 2) {
      const auto low = hn::And(value(k), hn::Set(di, 0xff));
      const auto high = hn::ShiftLeft<8>(hn::And(value(k + 1), hn::Set(di, 0xff)));
      auto* to = reinterpret_cast<std::uint16_t*>(values + Int8Layout::value_index(k, n));
      hn::StoreU(hn::DemoteTo(dh, hn::Or(low, high)), dh, to);
    }
  }
}

template <class Function>
HWY_INLINE void apply_row(const float* x, float* y, std::int64_t n, const Function& function) {
  for (std::int64_t i = 0; i < n; i += kLanes) {
    float values[kLanes] = {};
    std::copy_n(x + i, std::min<std::int64_t>(kLanes, n - i), values);
    hn::StoreU(function(hn::LoadU(FloatTag(), values)), FloatTag(), values);
    std::copy_n(values, std::min<std::int64_t>(kLanes, n - i), y + i);
  }
}

void exp_row(const float* x, float* y, std::int64_t n) {
  apply_row(x, y, n, [](FloatVec v) { return exp_v(FloatTag(), v); });
}
void exp2_of_negative_row(const float* x, float factor, float* y, std::int64_t n) {
  apply_row(x, y, n, [factor](FloatVec v) { return exp2_of_negative(FloatTag(), v, hn::Set(FloatTag(), factor)); });
}

template <Activation kActivation>
void activate_row(const float* x, float* y, std::int64_t n) {
  apply_row(x, y, n, [](FloatVec v) { return activate_v<kActivation>(FloatTag(), v); });
}

void activate(Activation activation, const float* x, float* y, std::int64_t n) {
  switch (activation) {
    case Activation::kNone:
      return activate_row<Activation::kNone>(x, y, n);
    case Activation::kGeluTanh:
      return activate_row<Activation::kGeluTanh>(x, y, n);
    case Activation::kGeluErf:
      return activate_row<Activation::kGeluErf>(x, y, n);
    case Activation::kRelu:
      return activate_row<Activation::kRelu>(x, y, n);
    case Activation::kSilu:
      return activate_row<Activation::kSilu>(x, y, n);
  }
}

void fill(Kernels& kernels) {
  kernels.layer_norm = &layer_norm;
  kernels.widen = &widen;
  kernels.narrow = &narrow;
  kernels.quantize_row = &quantize_row;
  kernels.quantize_group = &quantize_group;
  kernels.exp = &exp_row;
  kernels.exp2_of_negative = &exp2_of_negative_row;
  kernels.activate = &activate;
}

}  // namespace stagecoach::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif

#if HWY_ONCE
namespace stagecoach::cpu {

void set_row_kernels(Simd simd, Kernels& kernels) {
#if HWY_TARGETS & HWY_AVX2
  if (simd == Simd::kAvx2) N_AVX2::fill(kernels);
#endif
#if HWY_TARGETS & HWY_AVX3
  if (simd == Simd::kAvx512) N_AVX3::fill(kernels);
#endif
#if HWY_TARGETS & HWY_NEON
  if (simd == Simd::kNeon) N_NEON::fill(kernels);
#endif
}

}  // namespace stagecoach::cpu
#endif
