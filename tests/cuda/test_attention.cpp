// CUDA attention against a loop in double precision, over ragged batches of rows on scrambled, poisoned pages; and the
// bits of deterministic attention over chunkings, companions and devices.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <string>

#include "tests/cuda/attention_fixture.hpp"

namespace {

using stagecoach::DType;
using stagecoach::kSegmentPositions;
using stagecoach::name_of;
using stagecoach::test::AttentionCase;
using stagecoach::test::Chunk;
using stagecoach::test::fresh_random;
using stagecoach::test::PagedConversation;
using stagecoach::test::Random;
using stagecoach::test::Worst;
using stagecoach::test::worst_result;

constexpr std::array kDtypes = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};

std::string described(const AttentionCase& shape) {
  return std::to_string(shape.n_head) + " heads of " + std::to_string(shape.head_dim) + ", " +
         std::string(name_of(shape.dtype)) + " on " + std::string(name_of(shape.kv_dtype)) +
         (shape.tensor_cores() ? ", tensor cores" : "") + (shape.deterministic ? ", deterministic" : "") + ", " +
         std::to_string(shape.multiprocessors) + " multiprocessors";
}

// All rows in order, in calls of random chunks of random sequences.
std::vector<std::vector<Chunk>> random_calls(Random& random, const std::vector<std::int32_t>& lengths,
                                             std::int64_t longest) {
  std::vector<std::int32_t> done(lengths.size(), 0);
  std::vector<std::vector<Chunk>> calls;
  for (bool more = true; more;) {
    more = false;
    std::vector<Chunk> call;
    for (std::size_t s = 0; s < lengths.size(); ++s) {
      if (random.between(0, 2) > 0) {
        const std::int64_t size = random.between(0, 2) == 0 ? random.between(1, 4) : random.between(1, longest);
        const auto count = static_cast<std::int32_t>(std::min<std::int64_t>(size, lengths[s] - done[s]));
        if (count > 0) call.push_back({static_cast<std::int32_t>(s), done[s], count});
        done[s] += count;
      }
      more = more || done[s] < lengths[s];
    }
    if (!call.empty()) calls.push_back(call);
  }
  return calls;
}

AttentionCase random_case(Random& random, std::int32_t head_dim, DType dtype, DType kv_dtype) {
  AttentionCase shape;
  shape.head_dim = head_dim;
  shape.n_head = static_cast<std::int32_t>(random.between(1, 2));
  shape.dtype = dtype;
  shape.kv_dtype = kv_dtype;
  shape.options.scale = random.value(0.3F, 1.5F) / std::sqrt(static_cast<float>(head_dim));
  shape.options.may_round_queries = random.between(0, 1) == 1;
  shape.deterministic = random.between(0, 2) == 0;
  shape.multiprocessors = random.between(0, 1) == 0 ? 1 : 132;
  shape.padding = random.between(0, 1) * random.between(1, 9);
  return shape;
}

void check_case(const PagedConversation& conversation, const std::vector<std::vector<Chunk>>& calls) {
  const AttentionCase& shape = conversation.shape();
  INFO(described(shape));
  const Worst worst = worst_result(conversation, conversation.run(calls, shape.deterministic, shape.multiprocessors));
  INFO(worst.where);
  CHECK(worst.ratio <= 1.0);
}

void check_same_bits(const std::vector<std::vector<float>>& a, const std::vector<std::vector<float>>& b) {
  REQUIRE(a.size() == b.size());
  for (std::size_t s = 0; s < a.size(); ++s) {
    REQUIRE(a[s].size() == b[s].size());
    const auto same = [](float x, float y) {
      return std::bit_cast<std::uint32_t>(x) == std::bit_cast<std::uint32_t>(y);
    };
    const auto different = std::mismatch(a[s].begin(), a[s].end(), b[s].begin(), same).first - a[s].begin();
    if (different == static_cast<std::ptrdiff_t>(a[s].size())) continue;
    const auto i = static_cast<std::size_t>(different);
    FAIL_CHECK("sequence " << s << ", element " << i << " of " << a[s].size() << ": " << a[s][i] << " and " << b[s][i]);
  }
}

}  // namespace

TEST_CASE("CUDA attention: one row") {
  Random random = fresh_random();
  for (const DType dtype : kDtypes) {
    for (const DType kv_dtype : kDtypes) {
      AttentionCase shape = random_case(random, 64, dtype, kv_dtype);
      const PagedConversation conversation(random, shape, {1});
      check_case(conversation, {{{0, 0, 1}}});
    }
  }
}

TEST_CASE("CUDA attention: every dtype, ragged sequences in ragged chunks") {
  Random random = fresh_random();
  for (const std::int32_t head_dim : {1, 8, 20, 64, 80, 128, 200, 256}) {
    for (const DType dtype : kDtypes) {
      for (const DType kv_dtype : kDtypes) {
        const AttentionCase shape = random_case(random, head_dim, dtype, kv_dtype);
        const auto any = [&](std::int64_t most) { return static_cast<std::int32_t>(random.between(1, most)); };
        const PagedConversation conversation(random, shape, {any(130), any(40), 1});
        check_case(conversation, random_calls(random, conversation.lengths(), 90));
      }
    }
  }
}

TEST_CASE("CUDA attention: borders of tiles and pages") {
  Random random = fresh_random();
  for (const bool deterministic : {false, true}) {
    AttentionCase shape = random_case(random, 32, DType::kFloat16, DType::kFloat16);
    shape.n_head = 1;
    shape.deterministic = deterministic;
    const PagedConversation conversation(random, shape, {64, 65, 63, 129, 16, 17});
    check_case(conversation, {{{0, 0, 64}, {1, 0, 65}, {2, 0, 63}, {3, 0, 129}, {4, 0, 16}, {5, 0, 17}}});
  }
}

TEST_CASE("CUDA attention: split sequences") {
  Random random = fresh_random();
  for (const std::int32_t head_dim : {16, 64, 136}) {
    for (const bool deterministic : {false, true}) {
      AttentionCase shape = random_case(random, head_dim, DType::kFloat16, DType::kBFloat16);
      shape.n_head = 1;
      shape.deterministic = deterministic;
      shape.multiprocessors = 132;  // far more than there are items: as many parts as there can be
      const std::int32_t length = 300 + static_cast<std::int32_t>(random.between(0, 150));
      const PagedConversation conversation(random, shape, {length, 3});
      check_case(conversation, {{{0, 0, length - 2}}, {{0, length - 2, 1}, {1, 0, 3}}, {{0, length - 1, 1}}});
    }
  }
}

TEST_CASE("CUDA attention: large scores, negative and zero scales") {
  Random random = fresh_random();
  for (const DType dtype : {DType::kFloat32, DType::kFloat16}) {
    for (const float scale : {4.0F, -0.2F, 0.0F}) {
      AttentionCase shape = random_case(random, 24, dtype, dtype);
      shape.options.scale = scale;
      const PagedConversation conversation(random, shape, {80});
      check_case(conversation, random_calls(random, conversation.lengths(), 80));
    }
  }
}

TEST_CASE("CUDA attention: deterministic bits do not depend on chunking, companions or splits") {
  Random random = fresh_random();
  struct Kind {
    std::int32_t head_dim;
    DType dtype, kv_dtype;
  };
  for (const Kind kind : {Kind{16, DType::kFloat16, DType::kFloat16}, Kind{64, DType::kFloat32, DType::kBFloat16},
                          Kind{24, DType::kFloat32, DType::kFloat32}, Kind{136, DType::kFloat16, DType::kFloat16}}) {
    AttentionCase shape = random_case(random, kind.head_dim, kind.dtype, kind.kv_dtype);
    shape.n_head = 1;
    INFO(described(shape));
    const auto length = static_cast<std::int32_t>(random.between(515, 540));
    const PagedConversation conversation(random, shape, {length, 100});
    const auto whole = conversation.run({{{0, 0, length}}, {{1, 0, 100}}}, true, 1);
    // On a large device parts of a sequence are blocks of their own, on one multiprocessor a block works on all of
    // them.
    check_same_bits(whole, conversation.run(random_calls(random, conversation.lengths(), 200), true, 132));
  }
}

TEST_CASE("CUDA attention: nor where there is more than a segment") {
  Random random = fresh_random();
  for (const DType kv_dtype : {DType::kFloat16, DType::kFloat32}) {
    AttentionCase shape = random_case(random, 8, DType::kFloat16, kv_dtype);
    shape.n_head = 1;
    shape.deterministic = true;
    INFO(described(shape));
    const auto length =
        static_cast<std::int32_t>(random.between(2 * kSegmentPositions + 1, 2 * kSegmentPositions + 20));
    const PagedConversation conversation(random, shape, {length, 2});
    // Blocks that work on all keys of their rows, and blocks with a few pages each. The rows before take no part.
    const std::vector<Chunk> before{{0, 0, length - 70}};
    const auto whole = conversation.run({before, {{0, length - 70, 70}, {1, 0, 2}}}, true, 1);
    check_same_bits(whole, conversation.run({before, {{0, length - 70, 70}}, {{1, 0, 2}}}, true, 132));
  }
}

TEST_CASE("CUDA attention: pages are copied whole") {
  using stagecoach::KvPages;
  using stagecoach::cuda::kv_page_bytes;
  const std::int64_t bytes = kv_page_bytes(3, 20, DType::kFloat16);
  CHECK(bytes == 2 * 3 * 64 * 24 * 2);
  std::vector<std::uint8_t> host(static_cast<std::size_t>(bytes) * 3);
  for (std::size_t i = 0; i < host.size(); ++i) host[i] = static_cast<std::uint8_t>(i * 7 + i / 251);
  const stagecoach::test::DeviceBytes pages(host);
  stagecoach::cuda::copy_page(nullptr, KvPages{pages.data(), DType::kFloat16, 3, 3, 20}, 0, 2);
  const auto copied = pages.download();
  std::memcpy(host.data() + 2 * bytes, host.data(), static_cast<std::size_t>(bytes));
  CHECK(std::memcmp(copied.data(), host.data(), host.size()) == 0);
}

TEST_CASE("CUDA attention: what it refuses") {
  using stagecoach::cuda::kv_page_bytes;
  CHECK_THROWS_AS(kv_page_bytes(2, 257, DType::kFloat16), std::invalid_argument);
  CHECK_THROWS_AS(kv_page_bytes(0, 64, DType::kFloat16), std::invalid_argument);
  CHECK_THROWS_AS(kv_page_bytes(2, 64, DType::kInt8), std::invalid_argument);
  const stagecoach::cuda::AttentionPlan plan;
  const stagecoach::cuda::DeviceRows rows{2, nullptr, nullptr, nullptr, nullptr, 1};
  const stagecoach::KvPages kv{nullptr, DType::kFloat16, 1, 2, 4};
  const auto refused = [&](stagecoach::Tensor qkv, stagecoach::Tensor out, float scale) {
    CHECK_THROWS_AS(stagecoach::cuda::check_attention(rows, plan, qkv, kv, {scale, false}, out), std::invalid_argument);
  };
  const auto tensor = [](DType dtype, std::int64_t count, std::int64_t cols) {
    return stagecoach::make_tensor(nullptr, dtype, count, cols);
  };
  refused(tensor(DType::kFloat16, 2, 24), tensor(DType::kFloat32, 2, 8), 1.0F);
  refused(tensor(DType::kFloat16, 2, 24), tensor(DType::kFloat16, 2, 9), 1.0F);
  refused(tensor(DType::kFloat16, 3, 24), tensor(DType::kFloat16, 2, 8), 1.0F);
  refused(tensor(DType::kFloat16, 2, 24), tensor(DType::kFloat16, 2, 8), std::nanf(""));
}
