// Host version of kernels/cuda/machine.cuh: the same functions; that file says what they do.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

namespace stagecoach::cuda {

inline unsigned char* shared_memory() {
  return cuda_emulation::dynamic_shared_memory();
}

inline void prefetch(const void*) {}

inline void copy_async_16(void* shared, const void* global, bool valid) {
  cuda_emulation::copy_async(shared, global, valid);
}
inline void copy_async_commit() {
  cuda_emulation::copy_async_end_group();
}
template <int Pending>
inline void copy_async_wait() {
  static_assert(Pending >= 0);
  cuda_emulation::copy_async_wait_for_all_but(Pending);
}

inline void load_matrices(std::uint32_t (&fragment)[4], const void* shared) {
  cuda_emulation::load_matrices(fragment, shared, false);
}
inline void load_matrices_transposed(std::uint32_t (&fragment)[4], const void* shared) {
  cuda_emulation::load_matrices(fragment, shared, true);
}

template <typename Half>
inline void multiply_add(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<Half, __half>) {
    cuda_emulation::multiply_add_half(c, a, b);
  } else {
    static_assert(std::is_same_v<Half, __nv_bfloat16>);
    cuda_emulation::multiply_add_bfloat16(c, a, b);
  }
}

}  // namespace stagecoach::cuda
