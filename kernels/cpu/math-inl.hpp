// exp and the activations on vectors, from explicit fused multiply-adds.
// Bounds against exact values (tests/unit/test_kernels_math.cpp): exp 1.1 ulp of its result, also where that
// is subnormal; activations 2.5e-7 |x|. NaN stays NaN, overflow gives infinity.
#if defined(STAGECOACH_CPU_MATH_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef STAGECOACH_CPU_MATH_INL
#undef STAGECOACH_CPU_MATH_INL
#else
#define STAGECOACH_CPU_MATH_INL
#endif

#include <hwy/highway.h>
#include "kernels/backend.hpp"

#if HWY_TARGET & STAGECOACH_SIMD_TARGETS
HWY_BEFORE_NAMESPACE();
namespace stagecoach::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// 2^n as a float for n in -126..127.
template <class D, class VI>
HWY_INLINE hn::VFromD<D> power_of_two(D d, VI n) {
  const hn::RebindToSigned<D> di;
  return hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(n, hn::Set(di, 127))));
}

// exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln 2 / 2; Taylor to r^7 (error 5e-9 relative). ln 2 in two
// parts, the first with enough trailing zeros that n times it is exact. 2^n is applied in two factors, for
// results below 2^-126.
template <class D, class V>
HWY_INLINE V exp_v(D d, V x) {
  const hn::RebindToSigned<D> di;
  const V clamped = hn::Min(hn::Max(x, hn::Set(d, -110.0F)), hn::Set(d, 90.0F));
  const V n = hn::Round(hn::Mul(clamped, hn::Set(d, 1.44269504F)));
  V r = hn::NegMulAdd(n, hn::Set(d, 0.693359375F), clamped);
  r = hn::NegMulAdd(n, hn::Set(d, -2.12194440e-4F), r);
  V p = hn::Set(d, 1.0F / 5040.0F);
  p = hn::MulAdd(p, r, hn::Set(d, 1.0F / 720.0F));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0F / 120.0F));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0F / 24.0F));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0F / 6.0F));
  p = hn::MulAdd(p, r, hn::Set(d, 0.5F));
  const V one = hn::Set(d, 1.0F);
  const V value = hn::Add(hn::MulAdd(hn::Mul(r, r), p, r), one);
  const auto ni = hn::ConvertTo(di, n);
  const auto half = hn::ShiftRight<1>(ni);
  const V scaled = hn::Mul(hn::Mul(value, power_of_two(d, half)), power_of_two(d, hn::Sub(ni, half)));
  return hn::IfThenElse(hn::IsNaN(x), x, scaled);
}

// 2^(x factor) for x factor <= 0, which need not be a float: half the operations of exp_v. 0 below -125.5, where
// results come close to subnormal; exactly 1 for 0. n + 127, n = round(x factor), appears in the last bits of a sum
// with a number so large that its last bit is worth 1, and one shift makes 2^n of it. What remains of x factor is exact
// but for one rounding. Minimax polynomial of degree 5, error 1.1e-7 relative.
template <class D, class V>
HWY_INLINE V exp2_of_negative(D d, V x, V factor) {
  const hn::RebindToSigned<D> di;
  const V shifter = hn::Set(d, 12582912.0F + 127.0F);  // 1.5 * 2^23 + 127
  const V shifted = hn::MulAdd(x, factor, shifter);
  const V n = hn::Sub(shifted, shifter);
  const V r = hn::MulSub(x, factor, n);
  V p = hn::Set(d, 0.00132647272F);
  p = hn::MulAdd(p, r, hn::Set(d, 0.00967151281F));
  p = hn::MulAdd(p, r, hn::Set(d, 0.0555073374F));
  p = hn::MulAdd(p, r, hn::Set(d, 0.240222421F));
  p = hn::MulAdd(p, r, hn::Set(d, 0.693146978F));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0F));
  const V power = hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(di, shifted)));
  return hn::IfThenZeroElse(hn::Lt(n, hn::Set(d, -125.0F)), hn::Mul(p, power));
}
inline constexpr float kLog2E = 1.44269504F;  // e^x = 2^(x kLog2E)

// 1 / (1 + exp(-x)) times x, the logistic function's saturation included: large negative x gives -0.
template <class D, class V>
HWY_INLINE V times_logistic(D d, V x, V argument) {
  const V one = hn::Set(d, 1.0F);
  return hn::Div(x, hn::Add(one, exp_v(d, hn::Neg(argument))));
}

// 0.5 x (1 + tanh(u)) with u = sqrt(2/pi) (x + 0.044715 x^3) is x times the logistic function of 2u: no
// cancellation.
template <class D, class V>
HWY_INLINE V gelu_tanh_v(D d, V x) {
  const V cubic =
      hn::MulAdd(hn::Mul(x, x), hn::Set(d, 0.0713548163F), hn::Set(d, 1.59576912F));  // 2 sqrt(2/pi) {0.044715, 1}
  return times_logistic(d, x, hn::Mul(x, cubic));
}

// 0.5 x (1 + erf(z)), z = x / sqrt 2, as max(x, 0) - 0.5 |x| erfc(|z|). erfc(z) = exp(-z^2) t P(t), t = 1 /
// (1 + z / 2): P interpolates at Chebyshev nodes of t in 0..1, relative error 3e-7.
template <class D, class V>
HWY_INLINE V gelu_erf_v(D d, V x) {
  const V magnitude = hn::Abs(x);
  const V one = hn::Set(d, 1.0F);
  const V t = hn::Div(one, hn::MulAdd(magnitude, hn::Set(d, 0.353553391F), one));
  V p = hn::Set(d, -0.0185702544F);
  p = hn::MulAdd(p, t, hn::Set(d, 0.0340434785F));
  p = hn::MulAdd(p, t, hn::Set(d, 0.0859834258F));
  p = hn::MulAdd(p, t, hn::Set(d, -0.252363543F));
  p = hn::MulAdd(p, t, hn::Set(d, 0.109843811F));
  p = hn::MulAdd(p, t, hn::Set(d, 0.04826817F));
  p = hn::MulAdd(p, t, hn::Set(d, 0.182243434F));
  p = hn::MulAdd(p, t, hn::Set(d, 0.246346814F));
  p = hn::MulAdd(p, t, hn::Set(d, 0.282109875F));
  p = hn::MulAdd(p, t, hn::Set(d, 0.282094716F));
  // Far out exp is 0 already; the bound keeps 0 times infinity away.
  const V bounded = hn::Min(magnitude, hn::Set(d, 20.0F));
  const V e = exp_v(d, hn::Mul(hn::Mul(bounded, bounded), hn::Set(d, -0.5F)));
  const V tail = hn::Mul(hn::Mul(hn::Mul(hn::Set(d, 0.5F), bounded), hn::Mul(t, p)), e);
  const V value = hn::Sub(hn::Max(x, hn::Zero(d)), tail);
  return hn::IfThenElse(hn::IsNaN(x), x, value);
}

template <Activation kActivation, class D, class V>
HWY_INLINE V activate_v(D d, V x) {
  if constexpr (kActivation == Activation::kGeluTanh) return gelu_tanh_v(d, x);
  if constexpr (kActivation == Activation::kGeluErf) return gelu_erf_v(d, x);
  if constexpr (kActivation == Activation::kRelu) return hn::IfThenElse(hn::Lt(x, hn::Zero(d)), hn::Zero(d), x);
  if constexpr (kActivation == Activation::kSilu) return times_logistic(d, x, x);
  return x;
}

}  // namespace stagecoach::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
#endif
