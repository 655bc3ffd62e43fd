// Compiles attention-inl.hpp for every instruction set.
#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "kernels/cpu/attention-inl.hpp"

#if HWY_ONCE
namespace stagecoach::cpu {

void set_attention_kernels(Simd simd, Kernels& kernels) {
#if HWY_TARGETS & HWY_AVX2
  if (simd == Simd::kAvx2) kernels.append = &N_AVX2::append, kernels.attend = &N_AVX2::attend;
#endif
#if HWY_TARGETS & HWY_AVX3
  if (simd == Simd::kAvx512) kernels.append = &N_AVX3::append, kernels.attend = &N_AVX3::attend;
#endif
#if HWY_TARGETS & HWY_NEON
  if (simd == Simd::kNeon) kernels.append = &N_NEON::append, kernels.attend = &N_NEON::attend;
#endif
}

}  // namespace stagecoach::cpu
#endif
