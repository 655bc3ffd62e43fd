// The instruction sets that kernels are compiled for: include before any Highway header.
// All have a true fused multiply-add, which the layout-invariance contract rests on; SSE and the emulated
// targets have none, and the refinements of AVX-512 and SVE would only add compile time.
#pragma once

#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
// AVX2 stays available in builds with -march=native on an AVX-512 machine.
#define HWY_COMPILE_ALL_ATTAINABLE
// Of what Highway compiles anyway (its baseline), the kernels leave out the rest.
#define STAGECOACH_SIMD_TARGETS (HWY_AVX2 | HWY_AVX3 | HWY_NEON)
