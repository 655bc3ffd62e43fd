#include "kernels/arithmetic.hpp"

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include "runtime/checksum.hpp"
#include "tests/unit/kernels_fixture.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

// The same on every machine and with every standard library, -1 to 1.
class Sequence {
 public:
  float next() {
    state_ = state_ * 6364136223846793005U + 1442695040888963407U;
    return static_cast<float>(static_cast<std::int32_t>(state_ >> 40) - (1 << 23)) * 0x1p-23F;
  }
  Array array(std::int64_t rows, std::int64_t cols) {
    Array a(rows, cols);
    std::ranges::generate(a.values, [&] { return next(); });
    return a;
  }

 private:
  std::uint64_t state_ = 1;
};

// What every kind of operation makes of fixed numbers.
std::uint64_t fingerprint(Backend& backend) {
  Sequence sequence;
  std::vector<std::uint64_t> sums;
  const auto add = [&](const Array& a) { sums.push_back(xxh3_of(std::as_bytes(std::span(a.values)))); };

  const Array norm_in = sequence.array(5, 203), gain = sequence.array(1, 203), bias = sequence.array(1, 203);
  Array norm(5, 203);
  backend.layer_norm(norm_in.view(), gain.view(), bias.view(), 1e-5F, norm.view());
  add(norm);

  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt8}) {
    Matrix w = backend.make_matrix(203, 150, dtype);
    backend.load_rows(w, WeightLayout::kInOut, 0, sequence.array(203, 150).view());
    const Array b = sequence.array(1, 150);
    for (const Activation activation :
         {Activation::kNone, Activation::kGeluTanh, Activation::kGeluErf, Activation::kRelu, Activation::kSilu}) {
      for (const std::int64_t rows : {1, 5}) {
        Array y(rows, 150);
        backend.linear(norm.view().slice(0, rows), w, b.view(), {activation, false}, y.view());
        add(y);
      }
    }
  }

  constexpr std::int32_t kHeads = 2, kDim = 20, kPositions = 2 * kSegmentPositions + 100;
  const Array qkv = sequence.array(kPositions, 3 * kHeads * kDim);
  std::vector<std::int32_t> positions(kPositions), pages((kPositions + kPagePositions - 1) / kPagePositions);
  std::iota(positions.begin(), positions.end(), 0);
  std::iota(pages.begin(), pages.end(), 0);
  const std::vector<std::int32_t> sequences(kPositions, 0);
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    const Buffer storage =
        backend.allocate(backend.kv_page_bytes(kHeads, kDim, dtype) * static_cast<std::int64_t>(pages.size()));
    const KvPages kv{storage.data(), dtype, static_cast<std::int64_t>(pages.size()), kHeads, kDim};
    Array out(kPositions, kHeads * kDim);
    backend.set_rows({{}, positions, sequences, pages, static_cast<std::int32_t>(pages.size())});
    backend.attention(qkv.view(), kv, 0.3F, out.view());
    add(out);
  }
  return xxh3_of(std::as_bytes(std::span(sums)));
}

}  // namespace

TEST_CASE("a change of the CPU's arithmetic is noticed") {
  INFO("if the change is meant: count it in kernels/arithmetic.hpp, and put both numbers here");
  CHECK(kArithmetic == 2);
  for (const Simd simd : kEverySimd) {
    if (simd_name(simd).empty()) continue;  // not of this machine
    CHECK(fingerprint(*make_cpu_backend({2, simd})) == 11720808931834653216U);
  }
}
