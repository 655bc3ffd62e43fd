// How far results of float32 arithmetic may be from the reference, and what is farthest off: for the checking backend.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#include "kernels/tensor.hpp"

namespace stagecoach {

inline constexpr double kRoundoff = 0x1p-24;

inline double roundoff_of_sum(std::int64_t terms) {
  return kRoundoff * (8.0 + 4.0 * std::sqrt(static_cast<double>(terms)));
}

// Of rounding to `dtype`: half the distance of two neighbours over the smaller one, and for the smallest numbers.
inline double rounding_of(DType dtype, double value) {
  const double relative = dtype == DType::kFloat16 ? 0x1p-11 : dtype == DType::kBFloat16 ? 0x1p-8 : kRoundoff;
  return relative * std::abs(value) + (dtype == DType::kFloat16 ? 0x1p-25 : 0.0);
}

// The element that exceeds its tolerance by most.
class Comparison {
 public:
  explicit Comparison(std::string operation) : operation_(std::move(operation)) {}

  void add(std::int64_t r, std::int64_t c, float got, float want, double tolerance) {
    if (got == want || (std::isnan(got) && std::isnan(want))) return;
    const double error = std::abs(double{got} - double{want});
    const double excess = std::isfinite(error) ? error / std::max(tolerance, 1e-300) : 1e300;
    if (excess <= worst_) return;
    worst_ = excess;
    message_ = fmt::format("{}: element ({}, {}) is {}, the reference has {}, tolerance {}", operation_, r, c, got,
                           want, tolerance);
  }
  void finish() const {
    if (worst_ > 1.0) throw std::logic_error(message_);
  }

 private:
  std::string operation_;
  std::string message_;
  double worst_ = 0.0;
};

}  // namespace stagecoach
