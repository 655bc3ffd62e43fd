#include "partition/device_speed.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

namespace stagecoach {

Curve::Curve(std::vector<Point> points) : points_(std::move(points)) {
  for (std::size_t i = 0; i < points_.size(); ++i) {
    const Point p = points_[i];
    if (!std::isfinite(p.x) || !std::isfinite(p.y) || p.x < 0.0 || p.y < 0.0 || (i > 0 && p.x <= points_[i - 1].x)) {
      throw std::invalid_argument(fmt::format(
          "point {} ({}, {}): numbers must be finite, not negative, and the first ones ascend", i, p.x, p.y));
    }
  }
}

double Curve::at(double x) const {
  if (points_.empty()) return 0.0;
  if (x <= points_.front().x || points_.size() == 1) return points_.front().y;
  auto right = std::ranges::lower_bound(points_, x, {}, &Point::x);
  if (right == points_.end()) --right;
  const Point b = *right;
  const Point a = *(right - 1);
  return std::max(0.0, a.y + (b.y - a.y) * (x - a.x) / (b.x - a.x));
}

DeviceSpeed speed_from_rates(const DeviceRates& rates) {
  const double read_s = rates.weight_bytes / rates.bytes_per_s;
  const double multiply_s = 2.0 / rates.flops_per_s;  // per row
  const double knee = read_s / multiply_s;            // rows that take as long to multiply as their weights to read
  DeviceSpeed speed;
  if (knee > 1.0) speed.product = Curve({{1.0, read_s}, {knee, read_s}, {2.0 * knee, 2.0 * read_s}});
  if (knee <= 1.0) speed.product = Curve({{1.0, multiply_s}, {2.0, 2.0 * multiply_s}});
  speed.head = speed.product;
  // A key and its value: two products with each channel. Rows of one sequence share the reads.
  const double key_read_s = 2.0 * rates.kv_bytes / rates.bytes_per_s;
  const double key_multiply_s = 4.0 / rates.flops_per_s;
  const double few = std::max(key_read_s, key_multiply_s);
  speed.attention = Curve({{1.0, few}, {64.0, std::max(key_read_s / 64.0, key_multiply_s)}});
  return speed;
}

}  // namespace stagecoach
