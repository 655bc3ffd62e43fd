#include "kernels/compare_attention.hpp"

#include "kernels/comparison.hpp"

namespace stagecoach {
namespace {

double norm(const float* x, std::int64_t head_dim) {
  double squares = 0.0;
  for (std::int64_t d = 0; d < head_dim; ++d) squares += double{x[d]} * double{x[d]};
  return std::sqrt(squares);
}

// Scores are off by at most d = scale |q| |k| times the roundoff of a sum of head_dim terms; probabilities
// by a factor exp(2 d) and the roundoff of their sum; the output is their mean of values.
struct HeadTolerance {
  double score;     // a bound of |score|
  double relative;  // of sums of probabilities, and of those times values
};
HeadTolerance head_tolerance(const KvBounds& bounds, const KvPages& kv, const float* q, DType dtype, float scale) {
  const double score = std::abs(double{scale}) * norm(q, kv.head_dim) * bounds.key * 1.01;
  double relative = 2.0 * score * roundoff_of_sum(kv.head_dim) + roundoff_of_sum(1024);
  // Queries are rounded to the dtype of the keys, probabilities to that of the values.
  if (dtype != DType::kFloat32) relative += 2.0 * rounding_of(kv.dtype, score) + rounding_of(kv.dtype, 1.0);
  return {score, relative};
}

}  // namespace

void KvBounds::add(Tensor qkv, const KvPages& kv) {
  const std::int64_t width = std::int64_t{kv.n_head} * kv.head_dim;
  for (std::int64_t r = 0; r < qkv.rows; ++r) {
    const float* k = qkv.f32(r) + width;
    for (std::int64_t h = 0; h < kv.n_head; ++h) key = std::max(key, norm(k + h * kv.head_dim, kv.head_dim));
    for (std::int64_t c = 0; c < width; ++c) value = std::max(value, double{std::abs(k[width + c])});
  }
}

void compare_attention(const KvBounds& bounds, const KvPages& kv, Tensor qkv, DType dtype, float scale, Tensor got,
                       Tensor want) {
  Comparison comparison("attention");
  for (std::int64_t r = 0; r < got.rows; ++r) {
    for (std::int64_t h = 0; h < kv.n_head; ++h) {
      const double relative = head_tolerance(bounds, kv, qkv.f32(r) + h * kv.head_dim, dtype, scale).relative;
      for (std::int64_t c = h * kv.head_dim; c < (h + 1) * kv.head_dim; ++c) {
        comparison.add(r, c, got.f32(r)[c], want.f32(r)[c],
                       relative * bounds.value * 1.01 + rounding_of(dtype, want.f32(r)[c]));
      }
    }
  }
  comparison.finish();
}

void compare_parts(const KvBounds& bounds, const KvPages& kv, Tensor qkv, DType dtype, float scale,
                   std::span<const std::int64_t> rows, Tensor got, Tensor want) {
  const std::int64_t width = std::int64_t{kv.n_head} * kv.head_dim;
  Comparison comparison("attention_parts");
  for (std::int64_t p = 0; p < got.rows; ++p) {
    for (std::int64_t h = 0; h < kv.n_head; ++h) {
      const float* q = qkv.f32(rows[static_cast<std::size_t>(p)]) + h * kv.head_dim;
      const auto [score, relative] = head_tolerance(bounds, kv, q, dtype, scale);
      const std::int64_t m = width + 2 * h, l = m + 1;
      const double sum = want.f32(p)[l];
      comparison.add(p, m, got.f32(p)[m], want.f32(p)[m], relative + 4.0 * kRoundoff * score);
      comparison.add(p, l, got.f32(p)[l], want.f32(p)[l], relative * sum);
      for (std::int64_t c = h * kv.head_dim; c < (h + 1) * kv.head_dim; ++c) {
        comparison.add(p, c, got.f32(p)[c], want.f32(p)[c], relative * bounds.value * 1.01 * sum);
      }
    }
  }
  comparison.finish();
}

// Each part counts with exp(m - largest m), which is off by the roundings of its argument and some units.
void compare_merged(Tensor parts, std::int32_t n_head, std::span<const std::int32_t> first,
                    std::span<const std::int32_t> numbers, DType dtype, Tensor got, Tensor want) {
  const std::int64_t head_dim = want.cols / n_head;
  Comparison comparison("merge_parts");
  for (std::int64_t r = 0; r < want.rows; ++r) {
    const auto begin = static_cast<std::size_t>(first[static_cast<std::size_t>(r)]);
    const auto end = static_cast<std::size_t>(first[static_cast<std::size_t>(r) + 1]);
    const std::span<const std::int32_t> own = numbers.subspan(begin, end - begin);
    const double sums = roundoff_of_sum(static_cast<std::int64_t>(own.size()));
    for (std::int64_t c = 0; c < want.cols; ++c) {
      const std::int64_t m = want.cols + 2 * (c / head_dim), l = m + 1;
      double largest = -HUGE_VAL;
      for (const std::int32_t part : own) largest = std::max(largest, double{parts.f32(part)[m]});
      double sum = 0.0, error = 0.0;
      for (const std::int32_t part : own) {
        const double distance = largest - double{parts.f32(part)[m]};
        const double weight = std::exp(-distance);
        const double terms = std::abs(double{parts.f32(part)[c]}) + std::abs(want.f32(r)[c]) * parts.f32(part)[l];
        sum += weight * double{parts.f32(part)[l]};
        error += weight * terms * (sums + 4.0 * kRoundoff * distance);
      }
      comparison.add(r, c, got.f32(r)[c], want.f32(r)[c], error / sum + rounding_of(dtype, want.f32(r)[c]));
    }
  }
  comparison.finish();
}

}  // namespace stagecoach
