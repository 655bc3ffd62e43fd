// Which instruction sets this CPU has, and the table of kernels for one of them.
#include <fmt/format.h>

#include "kernels/cpu/targets.hpp"

#include <hwy/targets.h>
#include "kernels/cpu/kernels.hpp"

namespace stagecoach {
namespace {

std::int64_t target_of(Simd simd) {
  switch (simd) {
    case Simd::kBest:
      return 0;
    case Simd::kAvx2:
      return HWY_AVX2;
    case Simd::kAvx512:
      return HWY_AVX3;
    case Simd::kNeon:
      return HWY_NEON;
  }
  return 0;
}

bool available(Simd simd) {
  return (target_of(simd) & HWY_TARGETS & hwy::SupportedTargets()) != 0;
}

const char* plain_name(Simd simd) {
  switch (simd) {
    case Simd::kBest:
      return "";
    case Simd::kAvx2:
      return "AVX2";
    case Simd::kAvx512:
      return "AVX-512";
    case Simd::kNeon:
      return "NEON";
  }
  return "";
}

Simd best() {
  for (const Simd simd : {Simd::kAvx512, Simd::kAvx2, Simd::kNeon}) {
    if (available(simd)) return simd;
  }
  return Simd::kBest;
}

}  // namespace

std::string simd_name(Simd simd) {
  const Simd chosen = simd == Simd::kBest ? best() : simd;
  return available(chosen) ? plain_name(chosen) : "";
}

namespace cpu {

Simd resolve_simd(Simd simd) {
  const Simd chosen = simd == Simd::kBest ? best() : simd;
  if (available(chosen)) return chosen;
  if (simd == Simd::kBest) throw DeviceError("this CPU has none of AVX2 with FMA and F16C, AVX-512, NEON");
  throw DeviceError(fmt::format("this CPU has no {}", plain_name(simd)));
}

Kernels kernels_for(Simd simd) {
  Kernels kernels{};
  set_linear_kernels(simd, kernels);
  set_attention_kernels(simd, kernels);
  set_row_kernels(simd, kernels);
  return kernels;
}

}  // namespace cpu
}  // namespace stagecoach
