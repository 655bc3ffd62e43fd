#include "tests/cuda_emulation/cublas_lt_matmul.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "tests/cuda_emulation/half.hpp"

namespace stagecoach::cuda_emulation {

float load_element(const void* p, Element type, std::size_t index) {
  const auto* const bytes = static_cast<const std::byte*>(p) + index * bytes_of(type);
  if (type == Element::kFloat32) {
    float value = 0;
    std::memcpy(&value, bytes, sizeof(value));
    return value;
  }
  std::uint16_t bits = 0;
  std::memcpy(&bits, bytes, sizeof(bits));
  return type == Element::kHalf ? half_to_float(bits) : bfloat16_to_float(bits);
}

void store_element(void* p, Element type, std::size_t index, float value) {
  auto* const bytes = static_cast<std::byte*>(p) + index * bytes_of(type);
  if (type == Element::kFloat32) {
    std::memcpy(bytes, &value, sizeof(value));
    return;
  }
  const std::uint16_t bits = type == Element::kHalf ? float_to_half(value) : float_to_bfloat16(value);
  std::memcpy(bytes, &bits, sizeof(bits));
}

namespace {

// The matrix as float32, element (r, c) of op(m) at c * rows + r.
std::vector<float> widen(const MatrixView& m, bool transpose) {
  const std::size_t rows = transpose ? m.columns : m.rows, columns = transpose ? m.rows : m.columns;
  std::vector<float> wide(rows * columns);
  for (std::size_t c = 0; c < m.columns; ++c) {
    for (std::size_t r = 0; r < m.rows; ++r) {
      wide[transpose ? r * rows + c : c * rows + r] = load_element(m.data, m.type, c * m.leading + r);
    }
  }
  return wide;
}

float activate(Act act, float x) {
  if (act == Act::kRelu) return std::max(x, 0.0f);
  if (act == Act::kGelu) return 0.5f * x * (1.0f + std::tanh(0.7978845608f * (x + 0.044715f * x * x * x)));
  return x;
}

}  // namespace

void multiply(const Product& p) {
  const std::vector<float> a = widen(p.a, p.transpose_a), b = widen(p.b, p.transpose_b);
  const std::size_t m = p.d.rows, n = p.d.columns, depth = p.transpose_a ? p.a.rows : p.a.columns;
  std::vector<float> sum(m), part(m);
  for (std::size_t column = 0; column < n; ++column) {
    std::fill(sum.begin(), sum.end(), 0.0f);
    for (std::size_t split = 0; split < p.splits; ++split) {
      std::fill(part.begin(), part.end(), 0.0f);
      for (std::size_t k = depth * split / p.splits; k < depth * (split + 1) / p.splits; ++k) {
        const float factor = b[column * depth + k];
        const float* const from = a.data() + k * m;
        for (std::size_t row = 0; row < m; ++row) part[row] += from[row] * factor;
      }
      for (std::size_t row = 0; row < m; ++row) sum[row] += part[row];
    }
    for (std::size_t row = 0; row < m; ++row) {
      float value = p.alpha * sum[row];
      if (p.beta != 0) value += p.beta * load_element(p.c.data, p.c.type, column * p.c.leading + row);
      if (p.bias != nullptr) value += load_element(p.bias, p.bias_type, row);
      store_element(p.out, p.d.type, column * p.d.leading + row, activate(p.act, value));
    }
  }
}

}  // namespace stagecoach::cuda_emulation
