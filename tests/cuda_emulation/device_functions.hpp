// What device code does to memory without a header: cached loads, atomics (blocks and threads take turns, so these are
// plain), and reductions of a warp.
#pragma once

#include <algorithm>
#include <functional>
#include <type_traits>

#include "tests/cuda_emulation/threads.hpp"

// ---- memory ----
template <typename T>
T __ldg(const T* p) {
  return *p;
}
template <typename T>
T __ldcg(const T* p) {
  return *p;
}
template <typename T>
T __ldcs(const T* p) {
  return *p;
}
template <typename T>
void __stcg(T* p, std::type_identity_t<T> value) {
  *p = value;
}
template <typename T>
void __stcs(T* p, std::type_identity_t<T> value) {
  *p = value;
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __nanosleep(unsigned) {}

// ---- atomics: the value before ----
namespace stagecoach::cuda_emulation {
template <typename T>
T exchange(T* p, T value) {
  const T before = *p;
  *p = value;
  return before;
}
template <typename T>
concept AtomicNumber = std::is_same_v<T, int> || std::is_same_v<T, unsigned> || std::is_same_v<T, unsigned long long> ||
    std::is_same_v<T, float>;
template <typename T>
concept AtomicInteger = AtomicNumber<T> && std::is_integral_v<T>;
}  // namespace stagecoach::cuda_emulation

template <stagecoach::cuda_emulation::AtomicNumber T>
T atomicAdd(T* p, std::type_identity_t<T> value) {
  if constexpr (std::is_same_v<T, int>) {  // wraps
    const auto sum = static_cast<unsigned>(*p) + static_cast<unsigned>(value);
    return stagecoach::cuda_emulation::exchange(p, static_cast<int>(sum));
  } else {
    return stagecoach::cuda_emulation::exchange(p, static_cast<T>(*p + value));
  }
}
template <stagecoach::cuda_emulation::AtomicInteger T>
T atomicMax(T* p, std::type_identity_t<T> value) {
  return stagecoach::cuda_emulation::exchange(p, std::max(*p, value));
}
template <stagecoach::cuda_emulation::AtomicInteger T>
T atomicMin(T* p, std::type_identity_t<T> value) {
  return stagecoach::cuda_emulation::exchange(p, std::min(*p, value));
}
template <stagecoach::cuda_emulation::AtomicNumber T>
T atomicExch(T* p, std::type_identity_t<T> value) {
  return stagecoach::cuda_emulation::exchange(p, value);
}
template <stagecoach::cuda_emulation::AtomicInteger T>
T atomicCAS(T* p, std::type_identity_t<T> compare, std::type_identity_t<T> value) {
  return stagecoach::cuda_emulation::exchange(p, *p == compare ? value : *p);
}

// ---- warp reductions (sm_80) ----
namespace stagecoach::cuda_emulation {
struct Larger {
  template <typename T>
  T operator()(T a, T b) const {
    return std::max(a, b);
  }
};
struct Smaller {
  template <typename T>
  T operator()(T a, T b) const {
    return std::min(a, b);
  }
};
}  // namespace stagecoach::cuda_emulation
inline unsigned __reduce_add_sync(unsigned mask, unsigned value) {
  return stagecoach::cuda_emulation::reduce<std::plus<>>(mask, value);
}
inline int __reduce_add_sync(unsigned mask, int value) {
  return static_cast<int>(__reduce_add_sync(mask, static_cast<unsigned>(value)));
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value) {
  return stagecoach::cuda_emulation::reduce<stagecoach::cuda_emulation::Larger>(mask, value);
}
inline int __reduce_max_sync(unsigned mask, int value) {
  return stagecoach::cuda_emulation::reduce<stagecoach::cuda_emulation::Larger>(mask, value);
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned value) {
  return stagecoach::cuda_emulation::reduce<stagecoach::cuda_emulation::Smaller>(mask, value);
}
inline int __reduce_min_sync(unsigned mask, int value) {
  return stagecoach::cuda_emulation::reduce<stagecoach::cuda_emulation::Smaller>(mask, value);
}
