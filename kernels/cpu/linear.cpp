// Compiles linear-inl.hpp for every instruction set.
#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/linear.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "kernels/cpu/linear-inl.hpp"

#if HWY_ONCE
namespace stagecoach::cpu {

void set_linear_kernels(Simd simd, Kernels& kernels) {
#if HWY_TARGETS & HWY_AVX2
  if (simd == Simd::kAvx2) kernels.linear = &N_AVX2::linear;
#endif
#if HWY_TARGETS & HWY_AVX3
  if (simd == Simd::kAvx512) kernels.linear = &N_AVX3::linear;
#endif
#if HWY_TARGETS & HWY_NEON
  if (simd == Simd::kNeon) kernels.linear = &N_NEON::linear;
#endif
}

}  // namespace stagecoach::cpu
#endif
