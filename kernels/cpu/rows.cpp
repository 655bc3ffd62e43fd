// Row-wise kernels: layer norm, conversions, and the element-wise functions by themselves.
#include "kernels/cpu/targets.hpp"

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
  }
}

void exp_row(const float* x, float* y, std::int64_t n) {
  for (std::int64_t i = 0; i < n; i += kLanes) {
    float values[kLanes] = {};
    std::copy_n(x + i, std::min<std::int64_t>(kLanes, n - i), values);
    hn::StoreU(exp_v(FloatTag(), hn::LoadU(FloatTag(), values)), FloatTag(), values);
    std::copy_n(values, std::min<std::int64_t>(kLanes, n - i), y + i);
  }
}

template <Activation kActivation>
void activate_row(const float* x, float* y, std::int64_t n) {
  for (std::int64_t i = 0; i < n; i += kLanes) {
    float values[kLanes] = {};
    std::copy_n(x + i, std::min<std::int64_t>(kLanes, n - i), values);
    hn::StoreU(activate_v<kActivation>(FloatTag(), hn::LoadU(FloatTag(), values)), FloatTag(), values);
    std::copy_n(values, std::min<std::int64_t>(kLanes, n - i), y + i);
  }
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
  kernels.exp = &exp_row;
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
