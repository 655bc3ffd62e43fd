// The reference backend on data small enough to be worked out by hand.
#include <doctest/doctest.h>

#include <limits>

#include "tests/unit/kernels_fixture.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

Array array(std::int64_t rows, std::int64_t cols, std::vector<float> values) {
  Array a(rows, cols);
  a.values = std::move(values);
  return a;
}

// Both backends must get small integers exactly right, so the same hand-made cases serve as examples of the
// CPU backend.
std::vector<std::unique_ptr<Backend>> both() {
  std::vector<std::unique_ptr<Backend>> result;
  result.push_back(make_reference_backend());
  result.push_back(make_cpu_backend({}));
  return result;
}

}  // namespace

TEST_CASE("linear: x w + b, with every epilogue") {
  for (const auto& backend : both()) {
    Matrix w = backend->make_matrix(2, 3, DType::kFloat32);
    // clang-format off
    const Array in_out = array(2, 3, {1, 2, 3,
                                      4, 5, 6});
    const Array out_in = array(3, 2, {1, 4,
                                      2, 5,
                                      3, 6});
    // clang-format on
    const Array x = array(2, 2, {1, 10, -1, 0});
    const Array bias = array(1, 3, {0.5F, 0, -1});
    for (const bool transposed : {false, true}) {
      backend->load_rows(w, transposed ? WeightLayout::kOutIn : WeightLayout::kInOut, 0,
                         transposed ? out_in.view() : in_out.view());
      Array y(2, 3);
      backend->linear(x.view(), w, {}, {}, y.view());
      CHECK(y.values == std::vector<float>{41, 52, 63, -1, -2, -3});
      backend->linear(x.view(), w, bias.view(), {Activation::kRelu, false}, y.view());
      CHECK(y.values == std::vector<float>{41.5F, 52, 62, 0, 0, 0});
      backend->linear(x.view(), w, bias.view(), {Activation::kNone, true}, y.view());
      CHECK(y.values == std::vector<float>{83, 104, 124, -0.5F, -2, -4});
    }
  }
}

TEST_CASE("activations at known points") {
  for (const auto& backend : both()) {
    Matrix one = backend->make_matrix(1, 1, DType::kFloat32);
    backend->load_rows(one, WeightLayout::kInOut, 0, array(1, 1, {1}).view());
    const auto apply = [&](Activation activation, float x) {
      Array y(1, 1);
      backend->linear(array(1, 1, {x}).view(), one, {}, {activation, false}, y.view());
      return y.values[0];
    };
    CHECK(apply(Activation::kGeluTanh, 0.0F) == 0.0F);
    CHECK(apply(Activation::kGeluTanh, 1.0F) == doctest::Approx(0.8411919906).epsilon(1e-6));
    CHECK(apply(Activation::kGeluErf, 1.0F) == doctest::Approx(0.8413447461).epsilon(1e-6));
    CHECK(apply(Activation::kGeluErf, -2.0F) == doctest::Approx(-0.0455002639).epsilon(1e-5));
    CHECK(apply(Activation::kSilu, 1.0F) == doctest::Approx(0.7310585786).epsilon(1e-6));
    CHECK(apply(Activation::kRelu, -3.0F) == 0.0F);
  }
}

TEST_CASE("layer_norm: two values become -1 and 1, then gain and bias; constant rows become the bias") {
  for (const auto& backend : both()) {
    const Array x = array(2, 2, {1, 3, 7, 7});
    Array y(2, 2);
    backend->layer_norm(x.view(), array(1, 2, {2, 3}).view(), array(1, 2, {10, 20}).view(), 1e-12F, y.view());
    CHECK(y.values == std::vector<float>{8, 23, 10, 20});
  }
}

TEST_CASE("embed adds the token's column and the position's row; gather picks rows") {
  for (const auto& backend : both()) {
    Matrix wte = backend->make_matrix(2, 3, DType::kFloat16);
    backend->load_rows(wte, WeightLayout::kOutIn, 0, array(3, 2, {1, 2, 3, 4, 5, 6}).view());
    const Array wpe = array(2, 2, {10, 20, 30, 40});
    const std::vector<std::int32_t> tokens = {2, 0}, positions = {0, 1}, sequences = {0, 0}, pages = {0};
    backend->set_rows({tokens, positions, sequences, pages, 1});
    Array out(2, 2);
    backend->embed(wte, wpe.view(), out.view());
    CHECK(out.values == std::vector<float>{15, 26, 31, 42});
    Array picked(3, 2);
    const std::vector<std::int32_t> chosen = {1, 0, 1};
    backend->gather(out.view(), chosen, picked.view());
    CHECK(picked.values == std::vector<float>{31, 42, 15, 26, 31, 42});
  }
}

TEST_CASE("attention: each row sees its sequence up to itself, weighted by exp(scale q k)") {
  for (const auto& backend : both()) {
    const std::int64_t page_bytes = backend->kv_page_bytes(1, 1, DType::kFloat32);
    const Buffer storage = backend->allocate(2 * page_bytes);
    const KvPages kv{storage.data(), DType::kFloat32, 2, 1, 1};
    // Rows are q, k, v. Sequence 0: k = 0 and ln 3, so the second row weighs 1/4 and 3/4. Sequence 1 stands
    // alone.
    const Array qkv = array(3, 3, {1, 0, 4, 2, std::log(3.0F), 8, 5, 6, 7});
    const std::vector<std::int32_t> positions = {0, 1, 0}, sequences = {0, 0, 1}, pages = {1, 0};
    backend->set_rows({{}, positions, sequences, pages, 1});
    Array out(3, 1);
    backend->attention(qkv.view(), kv, 0.5F, out.view());
    CHECK(out.values[0] == 4.0F);
    CHECK(out.values[1] == doctest::Approx(7.0));
    CHECK(out.values[2] == 7.0F);
  }
}

TEST_CASE("copy_page: a sequence that forks on a copied page goes on as the original does") {
  Random random = fresh_random();
  for (const DType type : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (const auto& backend : both()) {
      const auto checking = make_checking_backend(make_cpu_backend({}));
      for (Backend* b : {backend.get(), checking.get()}) {
        constexpr std::int32_t kHeads = 3, kDim = 5, kWidth = kHeads * kDim;
        const std::int64_t page_bytes = b->kv_page_bytes(kHeads, kDim, type);
        const Buffer storage = b->allocate(3 * page_bytes);
        const KvPages kv{storage.data(), type, 3, kHeads, kDim};
        const Array prompt = random_array(random, 7, 3 * kWidth);
        const Array next = random_array(random, 1, 3 * kWidth);
        const std::vector<std::int32_t> positions = {0, 1, 2, 3, 4, 5, 6}, sequences(7, 0), source = {2};
        Array out(7, kWidth);
        b->set_rows({{}, positions, sequences, source, 1});
        b->attention(prompt.view(), kv, 0.3F, out.view());
        b->copy_page(kv, 2, 0);
        const std::vector<std::int32_t> position = {7}, sequence = {0}, copy = {0};
        Array original(1, kWidth), forked(1, kWidth);
        b->set_rows({{}, position, sequence, copy, 1});
        b->attention(next.view(), kv, 0.3F, forked.view());
        b->set_rows({{}, position, sequence, source, 1});
        b->attention(next.view(), kv, 0.3F, original.view());
        CHECK(forked.values == original.values);
        CHECK_THROWS_AS(b->copy_page(kv, 3, 0), std::invalid_argument);
        CHECK_THROWS_AS(b->copy_page(kv, 0, -1), std::invalid_argument);
        CHECK_THROWS_AS(b->copy_page(kv, 1, 1), std::invalid_argument);
      }
    }
  }
}
