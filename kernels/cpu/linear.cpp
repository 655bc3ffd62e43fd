// Compiles linear-inl.hpp for every instruction set.
#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/linear.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "kernels/cpu/linear-inl.hpp"

#if HWY_ONCE
namespace stagecoach::cpu {

static void fill(Kernels& kernels, decltype(Kernels::linear) linear, decltype(Kernels::pack) pack) {
  kernels.linear = linear;
  kernels.pack = pack;
}

void set_linear_kernels(Simd simd, Kernels& kernels) {
#if HWY_TARGETS & HWY_AVX2
  if (simd == Simd::kAvx2) fill(kernels, &N_AVX2::linear, &N_AVX2::pack);
#endif
#if HWY_TARGETS & HWY_AVX3
  if (simd == Simd::kAvx512) fill(kernels, &N_AVX3::linear, &N_AVX3::pack);
  if (simd == Simd::kAvx512Vnni) fill(kernels, &N_AVX3::linear_vnni, &N_AVX3::pack);
#endif
#if HWY_TARGETS & HWY_NEON
  if (simd == Simd::kNeon) fill(kernels, &N_NEON::linear, &N_NEON::pack);
#endif
}

}  // namespace stagecoach::cpu
#endif
