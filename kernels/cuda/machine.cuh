// What kernels use of the machine that the CUDA language has no plain C++ for: dynamic shared memory, asynchronous
// copies into it, matrix fragments and tensor cores. sm_80 and later.
//
// Every function but shared_memory, prefetch and copy_async_* is a warp's: all 32 lanes call it together. `Half` is __half or
// __nv_bfloat16. tests/cuda_emulation has a host version of this file under the same name.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

namespace stagecoach::cuda {

// The block's dynamic shared memory, aligned to 128 bytes; its contents are undefined at first.
__device__ inline unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
}

// Asks for the 128 bytes around `global` to come into the second-level cache.
__device__ inline void prefetch(const void* global) {
  asm volatile("prefetch.global.L2 [%0];\n" ::"l"(global));
}

// Starts a copy of 16 bytes into shared memory; both pointers are aligned to 16 bytes. Without `valid` nothing is read
// and zeros are written.
__device__ inline void copy_async_16(void* shared, const void* global, bool valid) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(address), "l"(global), "r"(bytes) : "memory");
}
// Ends a group of this thread's copies.
__device__ inline void copy_async_commit() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}
// Waits until at most `Pending` of this thread's groups are under way; other threads see the copies after a barrier.
template <int Pending>
__device__ inline void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(Pending) : "memory");
}

// Four matrices of 8 x 8 16-bit elements from shared memory: lane i gives the address (aligned to 16 bytes) of row i %
// 8 of matrix i / 8. Of matrix m, fragment[m] of lane i holds elements 2 * (i % 4) and 2 * (i % 4) + 1 of row i / 4,
// the first in the low half.
__device__ inline void load_matrices(std::uint32_t (&fragment)[4], const void* shared) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(address)
               : "memory");
}
// The same, transposed: elements 2 * (i % 4) and 2 * (i % 4) + 1 of column i / 4.
__device__ inline void load_matrices_transposed(std::uint32_t (&fragment)[4], const void* shared) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(address)
               : "memory");
}

// c (16, 8) += a (16, 16) * b (16, 8), accumulated in float32. With g = lane / 4, t = lane % 4, pairs low half first:
//   a[0], a[1], a[2], a[3]: columns 2t, 2t + 1 of rows g and g + 8; columns 2t + 8, 2t + 9 of rows g and g + 8
//   b[0], b[1]:             rows 2t, 2t + 1 of column g; rows 2t + 8, 2t + 9 of column g
//   c[0], c[1], c[2], c[3]: columns 2t and 2t + 1 of row g; the same of row g + 8
// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".
template <typename Half>
__device__ inline void multiply_add(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<Half, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    static_assert(std::is_same_v<Half, __nv_bfloat16>);
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
        "%2, %3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

}  // namespace stagecoach::cuda
