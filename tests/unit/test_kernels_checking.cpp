// The checking backend: a backend that computes wrongly is found out, whatever the operation.
#include <doctest/doctest.h>

#include <string>

#include "kernels/forwarding_backend.hpp"
#include "tests/unit/kernels_fixture.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

// Forwards to the CPU backend and then makes one element of the output wrong by a millionth part and a bit.
class Broken final : public ForwardingBackend {
 public:
  Broken() : ForwardingBackend(make_cpu_backend({})) {}

  void embed(const Matrix& wte, Tensor wpe, Tensor out) override { inner().embed(wte, wpe, out), spoil(out); }
  void copy_page(const KvPages& kv, std::int32_t from, std::int32_t to) override {
    inner().copy_page(kv, to, from);  // the wrong way round
  }
  void attention(Tensor qkv, const KvPages& kv, float scale, Tensor out) override {
    inner().attention(qkv, kv, scale, out), spoil(out);
  }
  void append(Tensor qkv, const KvPages& kv) override {
    qkv.f32(0)[10] += deviation_of_append;
    inner().append(qkv, kv);
    qkv.f32(0)[10] -= deviation_of_append;
  }
  void attention_parts(Tensor qkv, const KvPages& kv, float scale, std::int64_t first_row, std::int64_t rows,
                       Tensor parts) override {
    inner().attention_parts(qkv, kv, scale, first_row, rows, parts);
    if (spoilt_column >= 0) parts.f32(1)[spoilt_column] += 1e-3F;
  }
  void merge_parts(Tensor parts, std::int32_t n_head, std::span<const std::int32_t> first,
                   std::span<const std::int32_t> numbers, Tensor out) override {
    inner().merge_parts(parts, n_head, first, numbers, out), spoil(out);
  }
  void layer_norm(Tensor x, Tensor gain, Tensor bias, float epsilon, Tensor out) override {
    inner().layer_norm(x, gain, bias, epsilon, out), spoil(out);
  }
  void linear(Tensor x, const Matrix& w, Tensor bias, Epilogue epilogue, Tensor out) override {
    inner().linear(x, w, bias, epilogue, out), spoil(out);
  }
  void gather(Tensor x, std::span<const std::int32_t> rows, Tensor out) override {
    inner().gather(x, rows, out), spoil(out);
  }
  void summarize_logits(Tensor logits, std::span<const LogitsQuery> queries, void* out) override {
    inner().summarize_logits(logits, queries, out);
    auto* first = static_cast<TopLogit*>(static_cast<void*>(static_cast<LogitsTotals*>(out) + 1));
    std::swap(first[0], first[1]);
  }

  std::int64_t spoilt_column = 2;
  float deviation_of_append = 0.0F;

 private:
  static void spoil(Tensor out) { out.f32(1)[2] += 1e-3F; }
};

// The message of the logic_error that `body` throws, or nothing.
template <class Body>
std::string complaint(const Body& body) {
  try {
    body();
  } catch (const std::logic_error& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("a wrong element is reported with its operation, place and both values") {
  Random random = fresh_random();
  const auto backend = make_checking_backend(std::make_unique<Broken>());
  const Matrix w = random_matrix(*backend, random, 4, 6, DType::kBFloat16);
  const Array x = random_array(random, 3, 4);
  Array y(3, 6);
  const std::string said = complaint([&] { backend->linear(x.view(), w, {}, {}, y.view()); });
  CHECK(said.find("linear (4, 6) bfloat16: element (1, 2) is ") == 0);
  CHECK(said.find("the reference has ") != std::string::npos);

  const Array gain = random_array(random, 1, 4);
  Array z(3, 4);
  CHECK(complaint([&] {
          backend->layer_norm(x.view(), gain.view(), gain.view(), 1e-5F, z.view());
        }).find("layer_norm: element (1, 2)") == 0);
  const std::vector<std::int32_t> rows = {2, 0};
  Array some(2, 4);
  CHECK(complaint([&] { backend->gather(x.view(), rows, some.view()); }).find("gather: element (1, 2)") == 0);
  const std::vector<LogitsQuery> query{{2, 0}};
  std::vector<std::byte> summary(static_cast<std::size_t>(summary_bytes(query)));
  CHECK(complaint([&] {
          backend->summarize_logits(x.view().slice(0, 1), query, summary.data());
        }).find("summarize_logits: element (0, ") == 0);

  const std::vector<std::int32_t> tokens = {5, 0}, positions = {0, 1}, sequences = {0, 0}, pages = {0};
  backend->set_rows({tokens, positions, sequences, pages, 1});
  CHECK(complaint([&] { backend->embed(w, x.view(), some.view()); }).find("embed: element (1, 2)") == 0);
  const Buffer storage = backend->allocate(backend->kv_page_bytes(1, 4, DType::kFloat16));
  const Array qkv = random_array(random, 2, 12);
  CHECK(complaint([&] {
          backend->attention(qkv.view(), {storage.data(), DType::kFloat16, 1, 1, 4}, 0.5F, some.view());
        }).find("attention: element (1, 2)") == 0);
}

TEST_CASE("wrong attention in parts is found out, whichever of its operations is wrong") {
  Random random = fresh_random();
  auto owned = std::make_unique<Broken>();
  Broken& broken = *owned;
  const auto backend = make_checking_backend(std::move(owned));
  const std::vector<std::int32_t> positions = {0, 1}, sequences = {0, 0}, pages = {0};
  const Buffer storage = backend->allocate(backend->kv_page_bytes(1, 4, DType::kFloat32));
  const KvPages kv{storage.data(), DType::kFloat32, 1, 1, 4};
  Array qkv = random_array(random, 2, 12), parts(2, part_width(1, 4)), out(2, 4);
  for (float& value : qkv.values) value += value < 0.0F ? -0.5F : 0.5F;
  backend->set_rows({{}, positions, sequences, pages, 1});
  const auto parts_wrong = [&] {
    backend->append(qkv.view(), kv);
    return complaint([&] { backend->attention_parts(qkv.view(), kv, 0.5F, 0, 2, parts.view()); });
  };
  for (const std::int64_t column : {2, 4, 5}) {  // a sum of values, the largest score, the sum
    broken.spoilt_column = column;
    CHECK(parts_wrong().find("attention_parts: element (1, " + std::to_string(column) + ")") == 0);
  }
  broken.spoilt_column = -1;
  CHECK(parts_wrong().empty());
  broken.deviation_of_append = 0.1F;  // of the first row's value
  CHECK(parts_wrong().find("attention_parts: element (") == 0);
  CHECK(complaint([&] {
          backend->merge_parts(parts.view(), 1, std::vector{0, 1, 2}, std::vector{0, 1}, out.view());
        }).find("merge_parts: element (1, 2)") == 0);
}
