// Attention in parts on CUDA: parts against the reference's, merged ones against attention, and their bits.
#include "tests/cuda/spread.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

const std::vector<std::int32_t> kLengths = {2 * kSegmentPositions + 90, kSegmentPositions, 40, 3 * kSegmentPositions};
const std::vector<Chunk> kAll = {{0, 0, kLengths[0]}, {1, 0, kLengths[1]}, {2, 0, kLengths[2]}, {3, 0, kLengths[3]}};
// Across the end of a segment, few rows and many, the first positions and the last.
const std::vector<Chunk> kSome = {
    {0, 2 * kSegmentPositions - 5, 70}, {1, kSegmentPositions - 2, 2}, {2, 0, 1}, {3, 3 * kSegmentPositions - 1, 1}};

}  // namespace

TEST_CASE("CUDA parts agree with the reference, of every dtype and head") {
  Random random = fresh_random();
  for (const std::int32_t head_dim : {1, 20, 64, 80, 128, 256}) {
    for (const DType dtype : kFloats) {
      const Shape shape{static_cast<std::int32_t>(random.between(1, 2)), head_dim, dtype,
                        kFloats[random.between(0, 2)]};
      INFO(shape.describe());
      const std::unique_ptr<Backend> backend =
          make_checking_backend(random.between(0, 1) == 0 ? cuda_backend() : deterministic_cuda_backend());
      const std::vector<std::int32_t> lengths = {kSegmentPositions + 70, 30};
      Spread spread(*backend, random.bits(), shape, lengths, static_cast<std::int32_t>(random.between(1, 2)));
      spread.append({{0, 0, 500}, {1, 0, 30}});
      spread.append({{0, 500, lengths[0] - 500}});
      spread.merged({{0, kSegmentPositions - 3, 9}, {1, 29, 1}}, random.between(1, 10));
      spread.merged({{0, lengths[0] - 1, 1}, {1, 0, 30}}, random.between(1, 31));
    }
  }
}

TEST_CASE("CUDA parts, merged, are attention; deterministic ones bit for bit, wherever the segments are") {
  Random random = fresh_random();
  for (const Shape& shape : {Shape{2, 64, DType::kFloat16, DType::kFloat16},
                             {1, 24, DType::kFloat32, DType::kBFloat16},
                             {1, 40, DType::kBFloat16, DType::kFloat32},
                             {1, 136, DType::kFloat16, DType::kFloat16}}) {
    INFO(shape.describe());
    const std::uint64_t seed = random.bits();
    for (const bool deterministic : {false, true}) {
      const std::unique_ptr<Backend> backend =
          make_cuda_backend({.pool_bytes = std::int64_t{128} << 20, .deterministic = deterministic});
      Spread whole(*backend, seed, shape, kLengths, 1);
      whole.append(kAll);
      const std::vector<float> expected = whole.attention(kSome);
      for (std::int32_t places = deterministic ? 1 : 2; places <= 2; ++places) {
        Spread spread(*backend, seed, shape, kLengths, places);
        spread.append(kAll);
        const std::vector<float> got = spread.merged(kSome, random.between(20, 90));
        const bool halves = shape.dtype != DType::kFloat32 || shape.kv_dtype != DType::kFloat32;
        for (std::size_t i = 0; i < got.size(); ++i) {
          REQUIRE(std::abs(got[i] - expected[i]) <= (halves ? 0x1p-7F : 1e-5F));
        }
        if (deterministic) {
          CHECK(std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0);
          // Nor do companions matter.
          const std::vector<float> alone = spread.merged({kSome[0]}, random.between(20, 90));
          CHECK(std::memcmp(got.data(), alone.data(), alone.size() * sizeof(float)) == 0);
        }
      }
    }
  }
}

TEST_CASE("CUDA parts: nothing is allocated once there is room") {
  Random random = fresh_random();
  const OperationLimits limits{.rows = 100,
                               .columns = 64,
                               .weights = DType::kFloat16,
                               .n_head = 2,
                               .head_dim = 16,
                               .table_words = 400,
                               .parts = 400};
  const std::unique_ptr<Backend> backend =
      make_cuda_backend({.pool_bytes = std::int64_t{64} << 20, .deterministic = true, .graphs = false});
  backend->reserve(limits);
  CHECK(backend->bytes_allocated() == backend->layout().own_bytes(limits));
  OperationLimits whole = limits;
  whole.parts = 0;
  CHECK(backend->layout().own_bytes(whole) < backend->layout().own_bytes(limits));
  Spread spread(*backend, random.bits(), {2, 16, DType::kFloat16, DType::kFloat16}, kLengths, 2);
  for (std::int32_t p = 0; p < kLengths[0]; p += 100) spread.append({{0, p, std::min(100, kLengths[0] - p)}});
  const std::int64_t before = backend->bytes_allocated();
  spread.merged({{0, kLengths[0] - 100, 100}}, random.between(1, 100));
  spread.merged({{0, kLengths[0] - 3, 3}}, 100);
  CHECK(backend->bytes_allocated() == before);
}

TEST_CASE("CUDA parts: what is refused") {
  const std::unique_ptr<Backend> backend = cuda_backend();
  const std::vector<std::int32_t> position{70}, sequence{0}, here{0, 1}, elsewhere{kElsewhere, kElsewhere};
  DeviceArray qkv(*backend, DType::kFloat16, 1, 24), out(*backend, DType::kFloat16, 1, 8),
      parts(*backend, DType::kFloat32, 2, part_width(1, 8)), narrow(*backend, DType::kFloat16, 1, part_width(1, 8));
  const Buffer pages = backend->allocate(2 * backend->kv_page_bytes(1, 8, DType::kFloat16));
  const KvPages kv{pages.data(), DType::kFloat16, 2, 1, 8};
  backend->set_rows({{}, position, sequence, here, 2});
  CHECK_NOTHROW(backend->append(qkv.view(), kv));
  CHECK_NOTHROW(backend->attention_parts(qkv.view(), kv, 1.0F, 0, 1, parts.view().slice(0, 1)));
  CHECK_NOTHROW(backend->attention_parts(qkv.view(), kv, 1.0F, 1, 0, parts.view().slice(0, 0)));
  CHECK_THROWS_AS(backend->attention_parts(qkv.view(), kv, 1.0F, 0, 1, parts.view()), std::invalid_argument);
  CHECK_THROWS_AS(backend->attention_parts(qkv.view(), kv, 1.0F, 0, 1, narrow.view()), std::invalid_argument);
  CHECK_THROWS_AS(backend->attention_parts(qkv.view(), kv, std::nanf(""), 0, 1, parts.view().slice(0, 1)),
                  std::invalid_argument);
  backend->set_rows({{}, position, sequence, elsewhere, 2});
  CHECK_NOTHROW(backend->append(qkv.view(), kv));
  CHECK_NOTHROW(backend->attention_parts(qkv.view(), kv, 1.0F, 0, 1, parts.view().slice(0, 0)));
  CHECK_THROWS_AS(backend->attention(qkv.view(), kv, 1.0F, out.view()), std::invalid_argument);
  const std::vector<std::int32_t> first{0, 1}, number{2};
  CHECK_THROWS_AS(backend->merge_parts(parts.view(), 1, first, number, out.view()), std::invalid_argument);
}
