// Index arithmetic of the CPU backend's layouts.
//
// Matrix (in, out): panels of kPanel output columns, (in, kPanel) each, k-major; the last panel is padded
// with zeros.
//   A product reads a panel from front to back once, for one row or for many.
// KV page of one block: K as (n_head, head_dim, kPagePositions), then V as (n_head, kPagePositions, padded
// head_dim).
//   Each head's part is itself a panel: scores are q (head_dim) times K, the output is the probabilities
//   times V.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/backend.hpp"

namespace stagecoach::cpu {

inline constexpr std::int64_t kPanel = 64;
// Columns that the kernels work on together; a multiple of every instruction set's lanes. Also the number of
// logical lanes of sums across a row.
inline constexpr std::int64_t kUnit = 16;

constexpr std::int64_t round_up(std::int64_t n, std::int64_t unit) {
  return (n + unit - 1) / unit * unit;
}

struct MatrixLayout {
  std::int64_t in;
  std::int64_t out;

  constexpr std::int64_t panels() const { return (out + kPanel - 1) / kPanel; }
  constexpr std::int64_t panel_elements() const { return in * kPanel; }
  constexpr std::int64_t elements() const { return panels() * panel_elements(); }
  constexpr std::int64_t index(std::int64_t k, std::int64_t n) const {
    return n / kPanel * panel_elements() + k * kPanel + n % kPanel;
  }
};

// int8 matrix: panels as above; a panel is its groups of kInt8Group inputs one after the other, a group the scales
// (kPanel) float32, then (pairs of inputs, kPanel, 2) values; the last group is padded to an even number of inputs.
struct Int8Layout {
  static constexpr std::int64_t kScaleBytes = kPanel * 4;
  static constexpr std::int64_t kGroupBytes = kScaleBytes + kInt8Group * kPanel;

  std::int64_t in;
  std::int64_t out;

  constexpr std::int64_t panels() const { return (out + kPanel - 1) / kPanel; }
  constexpr std::int64_t panel_bytes() const { return int8_groups(in) * kScaleBytes + round_up(in, 2) * kPanel; }
  constexpr std::int64_t bytes() const { return panels() * panel_bytes(); }
  constexpr std::int64_t pairs(std::int64_t g) const { return (std::min(kInt8Group, in - g * kInt8Group) + 1) / 2; }
  constexpr std::int64_t group_begin(std::int64_t panel, std::int64_t g) const {
    return panel * panel_bytes() + g * kGroupBytes;
  }
  // Within a group's values.
  static constexpr std::int64_t value_index(std::int64_t k, std::int64_t n) {
    return k / 2 * 2 * kPanel + n * 2 + k % 2;
  }
};

struct PageLayout {
  std::int64_t n_head;
  std::int64_t head_dim;

  constexpr std::int64_t value_width() const { return round_up(head_dim, kUnit); }
  constexpr std::int64_t key_begin(std::int64_t h) const { return h * head_dim * kPagePositions; }
  constexpr std::int64_t value_begin(std::int64_t h) const {
    return n_head * head_dim * kPagePositions + h * kPagePositions * value_width();
  }
  constexpr std::int64_t elements() const { return value_begin(n_head); }
  // Elements after key_begin(h) and value_begin(h).
  constexpr std::int64_t key_index(std::int64_t d, std::int64_t slot) const { return d * kPagePositions + slot; }
  constexpr std::int64_t value_index(std::int64_t slot, std::int64_t d) const { return slot * value_width() + d; }
};

}  // namespace stagecoach::cpu
