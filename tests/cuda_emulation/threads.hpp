// What the threads of a block do together: barriers, warp functions, copies into shared memory.
//
// Stricter than hardware where that finds mistakes: a warp function wants every existing lane of its mask to arrive
// with the same mask and function (lanes that have returned included), and a source lane outside the mask gives
// garbage.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace stagecoach::cuda_emulation {

// Stops the kernel: its launch fails, and every later call on the device. For device code alone; does not return.
[[noreturn]] void kernel_fault(const char* what);

struct BarrierCounts {
  int threads = 0;     // that met at the barrier
  int predicates = 0;  // those of them with a predicate other than zero
};
BarrierCounts block_barrier(bool predicate);

// By lane; null where the mask or the warp has none.
using Lanes = std::array<void*, 32>;
using WarpFunction = void (*)(const Lanes& lanes);
// Waits for the lanes of `mask`; the last to arrive runs `function` on what they all passed.
void warp_together(std::uint32_t mask, WarpFunction function, void* lane);

unsigned char* dynamic_shared_memory();
void copy_async(void* shared, const void* global, bool valid);
void copy_async_end_group();
void copy_async_wait_for_all_but(int groups);

// ---- shuffles ----
template <typename T>
struct ShuffleLane {
  T value;
  int source;  // a lane of the warp
};
template <typename T>
void shuffle_together(const Lanes& lanes) {
  std::array<T, 32> values;
  std::memset(static_cast<void*>(values.data()), 0xFF, sizeof(values));
  for (std::size_t i = 0; i < 32; ++i) {
    if (lanes[i] != nullptr) values[i] = static_cast<ShuffleLane<T>*>(lanes[i])->value;
  }
  for (void* lane : lanes) {
    if (lane == nullptr) continue;
    auto& own = *static_cast<ShuffleLane<T>*>(lane);
    own.value = values[static_cast<std::size_t>(own.source)];
  }
}
int lane_index();
template <typename T>
T shuffle(std::uint32_t mask, T value, int source) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8 && (sizeof(T) >= 4 || std::is_class_v<T>));
  ShuffleLane<T> lane{value, source};
  warp_together(mask, &shuffle_together<T>, &lane);
  return lane.value;
}

// ---- votes and reductions: every lane gives a word and gets one ----
std::uint32_t ballot(std::uint32_t mask, bool predicate);
template <typename T, typename Combine>
struct ReduceLane {
  T value;
};
template <typename T, typename Combine>
void reduce_together(const Lanes& lanes) {
  T total{};
  bool first = true;
  for (void* lane : lanes) {
    if (lane == nullptr) continue;
    const T value = static_cast<ReduceLane<T, Combine>*>(lane)->value;
    total = first ? value : Combine{}(total, value);
    first = false;
  }
  for (void* lane : lanes) {
    if (lane != nullptr) static_cast<ReduceLane<T, Combine>*>(lane)->value = total;
  }
}
template <typename Combine, typename T>
T reduce(std::uint32_t mask, T value) {
  ReduceLane<T, Combine> lane{value};
  warp_together(mask, &reduce_together<T, Combine>, &lane);
  return lane.value;
}

// ---- matrices (kernels/cuda/machine.cuh says where elements lie) ----
void load_matrices(std::uint32_t (&fragment)[4], const void* shared, bool transposed);
void multiply_add_half(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]);
void multiply_add_bfloat16(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]);

}  // namespace stagecoach::cuda_emulation

// ---- CUDA's names ----
inline void __syncthreads() {
  stagecoach::cuda_emulation::block_barrier(false);
}
inline int __syncthreads_count(int predicate) {
  return stagecoach::cuda_emulation::block_barrier(predicate != 0).predicates;
}
inline int __syncthreads_or(int predicate) {
  return __syncthreads_count(predicate) != 0;
}
inline int __syncthreads_and(int predicate) {
  const auto counts = stagecoach::cuda_emulation::block_barrier(predicate != 0);
  return counts.predicates == counts.threads;
}
void __syncwarp(unsigned mask = 0xFFFFFFFFu);
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return stagecoach::cuda_emulation::ballot(mask, predicate != 0);
}
inline int __any_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) != 0;
}
inline int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate == 0) == 0;
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int lane = stagecoach::cuda_emulation::lane_index();
  return stagecoach::cuda_emulation::shuffle(mask, value, (lane & -width) | (source & (width - 1)));
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  const int lane = stagecoach::cuda_emulation::lane_index();
  const int source = lane ^ lane_mask;
  return stagecoach::cuda_emulation::shuffle(mask, value, source < (lane & -width) + width ? source & 31 : lane);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = stagecoach::cuda_emulation::lane_index();
  const int source = lane + static_cast<int>(delta);
  return stagecoach::cuda_emulation::shuffle(mask, value, source < (lane & -width) + width ? source : lane);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = stagecoach::cuda_emulation::lane_index();
  const int source = lane - static_cast<int>(delta);
  return stagecoach::cuda_emulation::shuffle(mask, value, source >= (lane & -width) ? source : lane);
}
