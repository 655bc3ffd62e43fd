// Random arrays, matrices and conversations for the tests of kernels. Seeds are fresh in every run and
// printed, so that a failure can be repeated with STAGECOACH_TEST_SEED.
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/backend.hpp"
#include "kernels/convert.hpp"

namespace stagecoach::test {

class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}
  std::uint64_t bits() { return engine_(); }
  std::int64_t between(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(engine_);
  }
  float value(float low = -1.0F, float high = 1.0F) {
    return std::uniform_real_distribution<float>(low, high)(engine_);
  }

 private:
  std::mt19937_64 engine_;
};

inline Random fresh_random() {
  const char* given = std::getenv("STAGECOACH_TEST_SEED");
  const std::uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  MESSAGE("STAGECOACH_TEST_SEED=" << seed);
  return Random(seed);
}

// A float32 (rows, cols) on the host, which is device memory for the reference and the CPU backend.
struct Array {
  Array(std::int64_t r, std::int64_t c) : rows(r), cols(c), values(static_cast<std::size_t>(r * c)) {}
  Tensor view() const { return make_tensor(const_cast<float*>(values.data()), DType::kFloat32, rows, cols); }
  std::int64_t rows, cols;
  std::vector<float> values;
};

inline Array random_array(Random& random, std::int64_t rows, std::int64_t cols) {
  Array a(rows, cols);
  for (float& v : a.values) v = random.value();
  return a;
}

inline bool same_bits(Tensor a, Tensor b) {
  for (std::int64_t r = 0; r < a.rows; ++r) {
    if (std::memcmp(a.row(r), b.row(r), static_cast<std::size_t>(a.cols * size_of(a.dtype))) != 0) return false;
  }
  return a.rows == b.rows && a.cols == b.cols;
}

// Loaded in blocks of random height, in a random layout, from a random dtype.
inline Matrix random_matrix(Backend& backend, Random& random, std::int64_t in, std::int64_t out, DType dtype) {
  Matrix matrix = backend.make_matrix(in, out, dtype);
  const bool in_out = random.between(0, 1) == 0;
  const std::int64_t rows = in_out ? in : out;
  const std::int64_t cols = in_out ? out : in;
  const auto source = static_cast<DType>(random.between(0, 2));
  std::vector<std::byte> host(static_cast<std::size_t>(rows * cols * size_of(source)));
  for (std::int64_t i = 0; i < rows * cols; ++i) store_element(host.data(), source, i, random.value());
  const Tensor all = make_tensor(host.data(), source, rows, cols);
  for (std::int64_t first = 0; first < rows;) {
    std::int64_t count = random.between(1, rows);
    if (dtype == DType::kInt8 && in_out) count = int8_groups(count) * kInt8Group;
    count = std::min(count, rows - first);
    backend.load_rows(matrix, in_out ? WeightLayout::kInOut : WeightLayout::kOutIn, first, all.slice(first, count));
    first += count;
  }
  return matrix;
}

// Some sequences of equal length with random queries, keys and values, whose pages lie scattered; run in
// chunks.
struct Conversation {
  Conversation(Backend& backend, Random& random, std::int32_t heads, std::int32_t dim, DType type, std::int32_t count,
               std::int32_t positions)
      : n_head(heads),
        head_dim(dim),
        dtype(type),
        sequences(count),
        length(positions),
        qkv(random_array(random, count * std::int64_t{positions}, 3 * heads * dim)) {
    per_sequence = (length + kPagePositions - 1) / kPagePositions;
    for (std::int32_t i = 0; i < sequences * per_sequence; ++i) pages.push_back(i + 1);
    for (std::size_t i = pages.size(); i > 1; --i)
      std::swap(pages[i - 1], pages[static_cast<std::size_t>(random.between(0, static_cast<std::int64_t>(i) - 1))]);
    page_bytes = backend.kv_page_bytes(heads, dim, type);
    storage = backend.allocate(page_bytes * (sequences * per_sequence + 1));
    scale = random.value(0.1F, 0.5F);
  }

  KvPages kv() const { return {storage.data(), dtype, std::int64_t{sequences} * per_sequence + 1, n_head, head_dim}; }

  // All bits set is a NaN in every dtype.
  void poison(Backend& backend) const {
    const std::vector<unsigned char> garbage(storage.bytes(), 0xff);
    backend.upload(storage.data(), garbage.data(), static_cast<std::int64_t>(storage.bytes()));
  }

  // Runs chunk after chunk of all sequences together (`chunks` is cut off at the length) and returns all
  // outputs in the order of sequence, position. Outputs are poisoned before.
  std::vector<float> run_chunks(Backend& backend, const std::vector<std::int64_t>& chunks) const {
    const std::int64_t width = std::int64_t{n_head} * head_dim;
    std::vector<float> result(static_cast<std::size_t>(sequences * std::int64_t{length} * width));
    std::int64_t begin = 0;
    for (const std::int64_t chunk : chunks) {
      const std::int64_t end = std::min<std::int64_t>(length, begin + chunk);
      std::vector<std::int32_t> position, sequence;
      Array in(sequences * (end - begin), 3 * width);
      Array out(sequences * (end - begin), width);
      for (float& v : out.values) v = std::nanf("");
      std::int64_t r = 0;
      for (std::int32_t s = 0; s < sequences; ++s) {
        for (std::int64_t p = begin; p < end; ++p, ++r) {
          position.push_back(static_cast<std::int32_t>(p));
          sequence.push_back(s);
          std::memcpy(in.view().row(r), qkv.view().row(s * std::int64_t{length} + p),
                      static_cast<std::size_t>(3 * width) * 4);
        }
      }
      backend.set_rows({{}, position, sequence, pages, per_sequence});
      if (r > 0) backend.attention(in.view(), kv(), scale, out.view());
      for (std::int64_t i = 0; i < r; ++i) {
        const std::int64_t at =
            sequence[static_cast<std::size_t>(i)] * std::int64_t{length} + position[static_cast<std::size_t>(i)];
        std::memcpy(result.data() + at * width, out.view().row(i), static_cast<std::size_t>(width) * 4);
      }
      begin = end;
    }
    return result;
  }

  std::int32_t n_head, head_dim;
  DType dtype;
  std::int32_t sequences, length;
  Array qkv;
  std::int32_t per_sequence = 0;
  std::vector<std::int32_t> pages;
  std::int64_t page_bytes = 0;
  Buffer storage;
  float scale = 1.0F;
};

}  // namespace stagecoach::test
