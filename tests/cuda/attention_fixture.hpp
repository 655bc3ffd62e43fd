// Conversations on the device, their attention in double precision, and how far a result may be from it.
#pragma once

#include <cuda_runtime.h>
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "kernels/convert.hpp"
#include "kernels/cuda/attention.hpp"
#include "kernels/cuda/check.hpp"
#include "kernels/cuda/kv_layout.hpp"
#include "tests/unit/kernels_fixture.hpp"

namespace stagecoach::test {

// Bytes on the device, at first all ones: a NaN in every dtype.
class DeviceBytes {
 public:
  explicit DeviceBytes(std::int64_t bytes) : bytes_(static_cast<std::size_t>(std::max<std::int64_t>(bytes, 16))) {
    cuda::check(cudaMalloc(&data_, bytes_));
    cuda::check(cudaMemset(data_, 0xff, bytes_));
  }
  template <typename T>
  explicit DeviceBytes(const std::vector<T>& host) : DeviceBytes(static_cast<std::int64_t>(host.size() * sizeof(T))) {
    if (!host.empty()) cuda::check(cudaMemcpy(data_, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;
  ~DeviceBytes() { cudaFree(data_); }

  void* data() const { return data_; }
  const std::int32_t* words() const { return static_cast<const std::int32_t*>(data_); }
  std::vector<std::byte> download() const {
    std::vector<std::byte> host(bytes_);
    cuda::check(cudaMemcpy(host.data(), data_, bytes_, cudaMemcpyDeviceToHost));
    return host;
  }

 private:
  void* data_ = nullptr;
  std::size_t bytes_;
};

struct AttentionCase {
  std::int32_t n_head = 1;
  std::int32_t head_dim = 64;
  DType dtype = DType::kFloat32;  // of activations
  DType kv_dtype = DType::kFloat16;
  cuda::AttentionOptions options;
  bool deterministic = false;
  int multiprocessors = 132;
  std::int64_t padding = 0;  // columns between rows of qkv and of out

  std::int64_t width() const { return std::int64_t{n_head} * head_dim; }
  bool tensor_cores() const {
    return kv_dtype != DType::kFloat32 && head_dim <= 128 && (dtype != DType::kFloat32 || options.may_round_queries);
  }
};

// Rows [first, first + count) of a sequence.
struct Chunk {
  std::int32_t sequence, first, count;
};

inline float rounded_to(DType dtype, float value) {
  std::uint32_t bits = 0;
  store_element(&bits, dtype, 0, value);
  return load_element(&bits, dtype, 0);
}

// The unit roundoff: the largest relative error of rounding to nearest.
inline double roundoff(DType dtype) {
  return dtype == DType::kFloat32 ? 0x1p-24 : dtype == DType::kFloat16 ? 0x1p-11 : 0x1p-8;
}

// Sequences of random rows whose pages lie in scrambled order among pages that nobody uses.
class PagedConversation {
 public:
  PagedConversation(Random& random, const AttentionCase& shape, std::vector<std::int32_t> lengths)
      : shape_(shape), lengths_(std::move(lengths)) {
    for (const std::int32_t length : lengths_) stride_ = std::max(stride_, length / kPagePositions + 1);
    const std::int64_t used = std::int64_t{stride_} * static_cast<std::int64_t>(lengths_.size());
    page_count_ = used + 3;
    std::vector<std::int32_t> order(static_cast<std::size_t>(page_count_));
    std::iota(order.begin(), order.end(), 0);
    for (std::size_t i = order.size(); i > 1; --i) {
      std::swap(order[i - 1], order[static_cast<std::size_t>(random.between(0, static_cast<std::int64_t>(i) - 1))]);
    }
    table_.assign(order.begin(), order.begin() + used);
    for (const std::int32_t length : lengths_) {
      std::vector<float> rows(static_cast<std::size_t>(length * 3 * shape_.width()));
      for (float& value : rows) value = rounded_to(shape_.dtype, random.value(-2.0F, 2.0F));
      qkv_.push_back(std::move(rows));
    }
  }

  const std::vector<std::int32_t>& lengths() const { return lengths_; }
  const AttentionCase& shape() const { return shape_; }
  // q (which = 0), k or v of a head, (head_dim).
  const float* row(std::int32_t sequence, std::int32_t position, int which, std::int32_t head) const {
    return qkv_[static_cast<std::size_t>(sequence)].data() + (std::int64_t{position} * 3 + which) * shape_.width() +
           std::int64_t{head} * shape_.head_dim;
  }

  // Runs the calls, each a list of chunks, on pages that held only NaNs; returns per sequence the outputs (length,
  // width), NaN where there was no row. Each call is on pages, inputs and outputs that are NaN around what belongs to
  // it, and checks that they stay so.
  std::vector<std::vector<float>> run(const std::vector<std::vector<Chunk>>& calls, bool deterministic,
                                      int multiprocessors) const {
    const DeviceBytes pages(page_count_ * cuda::kv_page_bytes(shape_.n_head, shape_.head_dim, shape_.kv_dtype));
    std::vector<std::vector<float>> results;
    for (const std::int32_t length : lengths_) {
      results.emplace_back(static_cast<std::size_t>(length * shape_.width()), std::nanf(""));
    }
    for (const std::vector<Chunk>& call : calls) run_call(call, deterministic, multiprocessors, pages, results);
    check_pages(calls, pages.download());
    return results;
  }

 private:
  struct HostRows {
    std::vector<std::int32_t> positions, sequences;
    std::vector<std::byte> qkv;
  };

  HostRows host_rows(const std::vector<Chunk>& call) const {
    HostRows rows;
    for (const Chunk& chunk : call) {
      for (std::int32_t i = 0; i < chunk.count; ++i) {
        rows.positions.push_back(chunk.first + i);
        rows.sequences.push_back(chunk.sequence);
      }
    }
    const std::int64_t stride = 3 * shape_.width() + shape_.padding;
    rows.qkv.resize(rows.positions.size() * static_cast<std::size_t>(stride * size_of(shape_.dtype)), std::byte{0xff});
    for (std::size_t r = 0; r < rows.positions.size(); ++r) {
      const float* source = row(rows.sequences[r], rows.positions[r], 0, 0);
      for (std::int64_t c = 0; c < 3 * shape_.width(); ++c) {
        store_element(rows.qkv.data(), shape_.dtype, static_cast<std::int64_t>(r) * stride + c, source[c]);
      }
    }
    return rows;
  }

  void run_call(const std::vector<Chunk>& call, bool deterministic, int multiprocessors, const DeviceBytes& pages,
                std::vector<std::vector<float>>& results) const {
    const HostRows host = host_rows(call);
    const auto count = static_cast<std::int64_t>(host.positions.size());
    RowSet row_set;
    row_set.assign({{}, host.positions, host.sequences, table_, stride_});
    cuda::AttentionPlan plan;
    plan.assign(row_set, deterministic, multiprocessors, shape_.n_head);
    const std::vector<std::int32_t> plan_words(plan.words().begin(), plan.words().end());

    const DeviceBytes positions(host.positions), sequences(host.sequences), table(table_), words(plan_words);
    const DeviceBytes qkv(host.qkv);
    const std::int64_t out_stride = shape_.width() + shape_.padding;
    const DeviceBytes out(count * out_stride * size_of(shape_.dtype));
    const DeviceBytes scratch(cuda::attention_scratch_bytes(count, shape_.n_head, shape_.head_dim));
    const cuda::DeviceRows rows{count, nullptr, positions.words(), sequences.words(), table.words(), stride_};
    const Tensor in{qkv.data(), shape_.dtype, count, 3 * shape_.width(), 3 * shape_.width() + shape_.padding};
    const Tensor result{out.data(), shape_.dtype, count, shape_.width(), out_stride};
    cuda::attention(nullptr, rows, plan, words.words(), in, kv(pages), shape_.options, result, scratch.data());
    const std::vector<std::byte> got = out.download();
    for (std::int64_t r = 0; r < count; ++r) {
      float* to = results[static_cast<std::size_t>(host.sequences[static_cast<std::size_t>(r)])].data() +
                  host.positions[static_cast<std::size_t>(r)] * shape_.width();
      for (std::int64_t c = 0; c < shape_.width(); ++c) {
        to[c] = load_element(got.data(), shape_.dtype, r * out_stride + c);
      }
      for (std::int64_t c = shape_.width(); c < out_stride; ++c) {
        REQUIRE(std::isnan(load_element(got.data(), shape_.dtype, r * out_stride + c)));
      }
    }
  }

  KvPages kv(const DeviceBytes& pages) const {
    return {pages.data(), shape_.kv_dtype, page_count_, shape_.n_head, shape_.head_dim};
  }

  // The pages hold K and V of the calls' rows, rounded to nearest even, zeros behind them, and NaNs elsewhere.
  void check_pages(const std::vector<std::vector<Chunk>>& calls, const std::vector<std::byte>& pages) const {
    const cuda::KvLayout layout = cuda::kv_layout(shape_.n_head, shape_.head_dim, shape_.kv_dtype);
    std::vector<std::byte> expected(pages.size(), std::byte{0xff});
    for (const std::vector<Chunk>& call : calls) {
      for (const Chunk& chunk : call) {
        for (std::int32_t i = chunk.first; i < chunk.first + chunk.count; ++i) {
          const std::int32_t page = table_[static_cast<std::size_t>(chunk.sequence * stride_ + i / kPagePositions)];
          for (std::int32_t which = 0; which < 2; ++which) {
            for (std::int32_t h = 0; h < shape_.n_head; ++h) {
              std::byte* tile = expected.data() + layout.tile(page, which, h);
              for (std::int32_t d = 0; d < layout.padded_dim; ++d) {
                const float value = d < shape_.head_dim ? row(chunk.sequence, i, 1 + which, h)[d] : 0.0F;
                store_element(tile, shape_.kv_dtype, i % kPagePositions * layout.padded_dim + d, value);
              }
            }
          }
        }
      }
    }
    CHECK(std::memcmp(expected.data(), pages.data(), pages.size()) == 0);
  }

  AttentionCase shape_;
  std::vector<std::int32_t> lengths_;
  std::int32_t stride_ = 1;
  std::int64_t page_count_ = 0;
  std::vector<std::int32_t> table_;
  std::vector<std::vector<float>> qkv_;
};

// Attention of one row and head: (head_dim) values, and how far from them a result may be.
struct Expected {
  std::vector<double> values, tolerances;
};

// How far a result may be off, as roundings add up: independent ones as the root of their squares, here four times
// that, which a sum of many never reaches, and several roundoffs where there are few.
//   a score     4 |scale| sqrt(sum (q k)^2) (u_q + sqrt(head_dim) 2^-23) + |score| 2^-22: q to 16 bits, summing,
//   scaling the weights e sum w |v - out| for scores off by e P           4 u_p sqrt(sum w^2 v^2), at least 2^-25 of
//   the largest weight each in float16 sums        (sqrt(keys) + 16) 2^-23 sum w |v|, truncated sums of tensor cores
//   included the output  u_out |out|
inline Expected expected_attention(const PagedConversation& conversation, std::int32_t sequence, std::int32_t position,
                                   std::int32_t head) {
  const AttentionCase& shape = conversation.shape();
  const auto dim = static_cast<std::size_t>(shape.head_dim);
  const double scale = double{shape.options.scale};
  const double half = shape.tensor_cores() ? roundoff(shape.kv_dtype) : 0.0;
  const auto kept = [&](float value) { return static_cast<double>(rounded_to(shape.kv_dtype, value)); };
  const float* q = conversation.row(sequence, position, 0, head);
  std::vector<double> weights;
  double score_error = 0.0;
  for (std::int32_t p = 0; p <= position; ++p) {
    const float* k = conversation.row(sequence, p, 1, head);
    double score = 0.0;
    double squares = 0.0;
    for (std::size_t d = 0; d < dim; ++d) {
      const double product = scale * double{q[d]} * kept(k[d]);
      score += product;
      squares += product * product;
    }
    weights.push_back(score);
    const double summing = std::sqrt(static_cast<double>(dim)) * 0x1p-23;
    score_error = std::max(score_error, 4.0 * std::sqrt(squares) * (half + summing) + std::abs(score) * 0x1p-22);
  }
  const double largest = *std::max_element(weights.begin(), weights.end());
  double sum = 0.0;
  for (double& weight : weights) sum += weight = std::exp(weight - largest);
  Expected result{std::vector<double>(dim), std::vector<double>(dim)};
  const double smallest = shape.dtype == DType::kFloat16 ? 0x1p-25 : 1e-30;  // outputs below the normal numbers
  std::vector<double> values(weights.size());
  for (std::size_t d = 0; d < dim; ++d) {
    double out = 0.0;
    for (std::size_t p = 0; p < weights.size(); ++p) {
      values[p] = kept(conversation.row(sequence, static_cast<std::int32_t>(p), 2, head)[d]);
      out += weights[p] / sum * values[p];
    }
    double spread = 0.0, squares = 0.0, magnitude = 0.0, subnormal = 0.0;
    for (std::size_t p = 0; p < weights.size(); ++p) {
      const double v = values[p];
      const double part = weights[p] / sum * v;
      spread += weights[p] / sum * std::abs(v - out);
      squares += part * part;
      magnitude += std::abs(part);
      subnormal += half > 0.0 ? 0x1p-25 / sum * std::abs(v) : 0.0;
    }
    const double sums = (std::sqrt(static_cast<double>(weights.size())) + 16.0) * 0x1p-23;
    result.values[d] = out;
    result.tolerances[d] = std::expm1(score_error) * spread + 4.0 * half * std::sqrt(squares) + subnormal +
                           sums * magnitude + roundoff(shape.dtype) * std::abs(out) + smallest;
  }
  return result;
}

// The result that is farthest from what is expected, in units of its tolerance.
struct Worst {
  double ratio = 0.0;
  std::string where;
};
inline Worst worst_result(const PagedConversation& conversation, const std::vector<std::vector<float>>& results) {
  const AttentionCase& shape = conversation.shape();
  Worst worst;
  for (std::size_t s = 0; s < results.size(); ++s) {
    for (std::int32_t p = 0; p < conversation.lengths()[s]; ++p) {
      for (std::int32_t h = 0; h < shape.n_head; ++h) {
        const Expected expected = expected_attention(conversation, static_cast<std::int32_t>(s), p, h);
        const float* got = results[s].data() + p * shape.width() + std::int64_t{h} * shape.head_dim;
        for (std::size_t d = 0; d < expected.values.size(); ++d) {
          const double ratio = std::abs(double{got[d]} - expected.values[d]) / expected.tolerances[d];
          if (ratio <= worst.ratio) continue;
          worst.ratio = std::isnan(ratio) ? std::numeric_limits<double>::infinity() : ratio;
          worst.where = fmt::format("sequence {}, position {}, head {}, column {}: {} instead of {} +- {}", s, p, h, d,
                                    got[d], expected.values[d], expected.tolerances[d]);
        }
      }
    }
  }
  return worst;
}

}  // namespace stagecoach::test
