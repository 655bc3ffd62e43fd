// Compiles attention-inl.hpp for every instruction set.
#include "kernels/cpu/targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "kernels/cpu/attention-inl.hpp"

#if HWY_ONCE
namespace stagecoach::cpu {

static void fill(Kernels& kernels, decltype(Kernels::append) append, decltype(Kernels::attend) attend,
                 decltype(Kernels::attend_part) attend_part, decltype(Kernels::merge_parts) merge_parts) {
  kernels.append = append;
  kernels.attend = attend;
  kernels.attend_part = attend_part;
  kernels.merge_parts = merge_parts;
}

void set_attention_kernels(Simd simd, Kernels& kernels) {
#if HWY_TARGETS & HWY_AVX2
  if (simd == Simd::kAvx2) fill(kernels, &N_AVX2::append, &N_AVX2::attend, &N_AVX2::attend_part, &N_AVX2::merge_parts);
#endif
#if HWY_TARGETS & HWY_AVX3
  if (simd == Simd::kAvx512)
    fill(kernels, &N_AVX3::append, &N_AVX3::attend, &N_AVX3::attend_part, &N_AVX3::merge_parts);
#endif
#if HWY_TARGETS & HWY_NEON
  if (simd == Simd::kNeon) fill(kernels, &N_NEON::append, &N_NEON::attend, &N_NEON::attend_part, &N_NEON::merge_parts);
#endif
}

}  // namespace stagecoach::cpu
#endif
