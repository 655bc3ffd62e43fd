// A matrix product with an epilogue, on plain memory: what cuBLASLt's calls come down to.
#pragma once

#include <cstddef>
#include <cstdint>

namespace stagecoach::cuda_emulation {

enum class Element : std::uint8_t { kFloat32, kHalf, kBFloat16 };
inline std::size_t bytes_of(Element type) {
  return type == Element::kFloat32 ? 4 : 2;
}
float load_element(const void* p, Element type, std::size_t index);
void store_element(void* p, Element type, std::size_t index, float value);

// Column-major (rows, columns): element (r, c) is at c * leading + r.
struct MatrixView {
  const void* data = nullptr;
  Element type = Element::kFloat32;
  std::size_t rows = 0, columns = 0, leading = 0;
};
enum class Act : std::uint8_t { kNone, kRelu, kGelu };

// d = act(alpha * op(a) * op(b) + beta * c + bias), bias by row of d (may be null). Sums in float32, in order of k in
// each of `splits` ranges of k, whose sums are then added. c may be d; it is not read when beta is zero.
struct Product {
  MatrixView a, b, c, d;
  void* out = nullptr;
  bool transpose_a = false, transpose_b = false;
  float alpha = 1, beta = 0;
  const void* bias = nullptr;
  Element bias_type = Element::kFloat32;
  Act act = Act::kNone;
  std::size_t splits = 1;
};
void multiply(const Product& product);

}  // namespace stagecoach::cuda_emulation
