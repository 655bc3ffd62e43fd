// int8 weights: w(k, n) = q(k, n) * scale(k / kInt8Group, n), q in -127..127: symmetric, one float32 scale per output
// column and group of consecutive inputs. These functions are the definition, which every backend follows bit for bit.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace stagecoach {

inline constexpr std::int64_t kInt8Group = 128;
inline constexpr float kInt8Largest = 127.0F;
// Groups whose values are all smaller than this are zero: below it the inverse of a scale would overflow.
inline constexpr float kInt8Smallest = 1e-30F;

constexpr std::int64_t int8_groups(std::int64_t in) {
  return (in + kInt8Group - 1) / kInt8Group;
}

// `largest`: the largest magnitude of the group.
inline float int8_scale(float largest) {
  return largest < kInt8Smallest ? 0.0F : largest / kInt8Largest;
}
// What weights are multiplied with before they are rounded to nearest even.
inline float int8_inverse(float largest) {
  return largest < kInt8Smallest ? 0.0F : kInt8Largest / largest;
}
inline std::int8_t int8_value(float weight, float inverse) {
  return static_cast<std::int8_t>(std::nearbyint(weight * inverse));
}

}  // namespace stagecoach
