// Index arithmetic of the CPU backend's layouts.
//
// Matrix: packed in panels, as weight_layout.hpp says.
// KV page of one block: for each head K as (head_dim, kPagePositions), then V as (kPagePositions, padded head_dim).
//   Each is itself a panel: scores are q (head_dim) times K, the output is the probabilities times V.
#pragma once

#include <cstdint>

#include "kernels/backend.hpp"
#include "kernels/weight_layout.hpp"

namespace stagecoach::cpu {

// Columns that the kernels work on together; a multiple of every instruction set's lanes. Also the number of
// logical lanes of sums across a row.
inline constexpr std::int64_t kUnit = 16;

constexpr std::int64_t ceil_div(std::int64_t n, std::int64_t parts) {
  return (n + parts - 1) / parts;
}
constexpr std::int64_t round_up(std::int64_t n, std::int64_t unit) {
  return (n + unit - 1) / unit * unit;
}

struct PageLayout {
  std::int64_t n_head;
  std::int64_t head_dim;

  constexpr std::int64_t value_width() const { return round_up(head_dim, kUnit); }
  constexpr std::int64_t key_begin(std::int64_t h) const { return h * (head_dim + value_width()) * kPagePositions; }
  constexpr std::int64_t value_begin(std::int64_t h) const { return key_begin(h) + head_dim * kPagePositions; }
  constexpr std::int64_t elements() const { return key_begin(n_head); }
  // Elements after key_begin(h) and value_begin(h).
  constexpr std::int64_t key_index(std::int64_t d, std::int64_t slot) const { return d * kPagePositions + slot; }
  constexpr std::int64_t value_index(std::int64_t slot, std::int64_t d) const { return slot * value_width() + d; }
};

}  // namespace stagecoach::cpu
