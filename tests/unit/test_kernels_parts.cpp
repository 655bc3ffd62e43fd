// Attention in parts: segments that are reduced in different places give the bits of attention in one.
#include <doctest/doctest.h>

#include <array>
#include <span>

#include "tests/rounds.hpp"
#include "tests/unit/kernels_fixture.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

// One of several places, with pages for the whole conversation of which it uses its own.
struct Place {
  Place(Backend& backend, const Conversation& talk)
      : storage(backend.allocate(static_cast<std::int64_t>(talk.storage.bytes()))) {
    const std::vector<unsigned char> garbage(storage.bytes(), 0xff);  // NaN: what nobody wrote must not matter
    backend.upload(storage.data(), garbage.data(), static_cast<std::int64_t>(storage.bytes()));
  }
  KvPages kv(const Conversation& talk) const {
    KvPages pages = talk.kv();
    pages.base = const_cast<void*>(storage.data());
    return pages;
  }
  Buffer storage;
  std::vector<std::int32_t> table;  // kElsewhere where others have the segment
};

struct Spread {
  Spread(Backend& backend, const Conversation& talk, std::int32_t count) {
    for (std::int32_t i = 0; i < count; ++i) {
      Place& place = places.emplace_back(backend, talk);
      for (std::int32_t p = 0; p < static_cast<std::int32_t>(talk.pages.size()); ++p) {
        const std::int32_t in_sequence = p % talk.per_sequence;
        const std::int32_t owner = (p / talk.per_sequence + in_sequence / kSegmentPages) % count;
        place.table.push_back(owner == i ? talk.pages[static_cast<std::size_t>(p)] : kElsewhere);
      }
    }
  }
  std::int32_t owner(std::int32_t sequence, std::int32_t segment) const {
    return (sequence + segment) % static_cast<std::int32_t>(places.size());
  }
  std::vector<Place> places;
};

// As Conversation::run_chunks, in parts.
std::vector<float> run_in_parts(Backend& backend, const Conversation& talk, const Spread& spread, std::int64_t chunk,
                                Random& random) {
  const std::int64_t width = std::int64_t{talk.n_head} * talk.head_dim;
  std::vector<float> result(static_cast<std::size_t>(talk.sequences * std::int64_t{talk.length} * width));
  for (std::int64_t begin = 0; begin < talk.length; begin += chunk) {
    const std::int64_t end = std::min<std::int64_t>(talk.length, begin + chunk);
    std::vector<std::int32_t> position, sequence;
    Array in(talk.sequences * (end - begin), 3 * width);
    for (std::int32_t s = 0; s < talk.sequences; ++s) {
      for (std::int64_t p = begin; p < end; ++p) {
        std::memcpy(in.view().row(static_cast<std::int64_t>(position.size())),
                    talk.qkv.view().row(s * std::int64_t{talk.length} + p), static_cast<std::size_t>(3 * width) * 4);
        position.push_back(static_cast<std::int32_t>(p));
        sequence.push_back(s);
      }
    }
    const auto rows = static_cast<std::int64_t>(position.size());
    // Numbers of the parts, by place, row and segment of the place.
    std::vector<std::vector<std::int32_t>> by_row(static_cast<std::size_t>(rows));
    std::int32_t next = 0;
    std::vector<std::int32_t> of_place;
    std::vector<std::vector<std::pair<std::int32_t, std::int32_t>>> numbered(static_cast<std::size_t>(rows));
    for (std::int32_t i = 0; i < static_cast<std::int32_t>(spread.places.size()); ++i) {
      const std::int32_t before = next;
      for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int32_t s = 0; s <= position[static_cast<std::size_t>(r)] / kSegmentPositions; ++s) {
          if (spread.owner(sequence[static_cast<std::size_t>(r)], s) == i) {
            numbered[static_cast<std::size_t>(r)].emplace_back(s, next++);
          }
        }
      }
      of_place.push_back(next - before);
    }
    Array parts(next, part_width(talk.n_head, talk.head_dim));
    for (float& v : parts.values) v = std::nanf("");
    std::int32_t done = 0;
    for (std::size_t i = 0; i < spread.places.size(); ++i) {
      const Place& place = spread.places[i];
      backend.set_rows({{}, position, sequence, place.table, talk.per_sequence});
      backend.append(in.view(), place.kv(talk));
      // In two calls, cut anywhere.
      const std::int64_t cut = random.between(0, rows);
      std::int64_t first = 0;
      for (std::int64_t r = 0; r < cut; ++r) {
        for (std::int32_t s = 0; s <= position[static_cast<std::size_t>(r)] / kSegmentPositions; ++s) {
          first += spread.owner(sequence[static_cast<std::size_t>(r)], s) == static_cast<std::int32_t>(i) ? 1 : 0;
        }
      }
      const Tensor mine = parts.view().slice(done, of_place[i]);
      backend.attention_parts(in.view(), place.kv(talk), talk.scale, 0, cut, mine.slice(0, first));
      backend.attention_parts(in.view(), place.kv(talk), talk.scale, cut, rows - cut,
                              mine.slice(first, of_place[i] - first));
      done += of_place[i];
    }
    std::vector<std::int32_t> ends{0}, numbers;
    for (auto& of_row : numbered) {
      std::ranges::sort(of_row);
      for (const auto& [segment, number] : of_row) numbers.push_back(number);
      ends.push_back(static_cast<std::int32_t>(numbers.size()));
    }
    Array out(rows, width);
    for (float& v : out.values) v = std::nanf("");
    backend.merge_parts(parts.view(), talk.n_head, ends, numbers, out.view());
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int64_t at =
          sequence[static_cast<std::size_t>(r)] * std::int64_t{talk.length} + position[static_cast<std::size_t>(r)];
      std::memcpy(result.data() + at * width, out.view().row(r), static_cast<std::size_t>(width) * 4);
    }
  }
  return result;
}

}  // namespace

TEST_CASE("attention in parts gives the bits of attention, wherever the segments are") {
  Random random = fresh_random();
  for (const Simd simd : kEverySimd) {
    if (simd_name(simd).empty()) continue;
    std::vector<DType> dtypes = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
    if (kSanitized) dtypes = {dtypes[static_cast<std::size_t>(random.between(0, 2))]};
    for (const DType dtype : dtypes) {
      const std::unique_ptr<Backend> backend = make_cpu_backend({static_cast<int>(random.between(1, 3)), simd});
      const auto head_dim = static_cast<std::int32_t>(random.between(1, 70));
      const auto length = static_cast<std::int32_t>(random.between(2 * kSegmentPositions, 3 * kSegmentPositions));
      CAPTURE(simd_name(simd));
      CAPTURE(head_dim);
      CAPTURE(length);
      Conversation talk(*backend, random, 2, head_dim, dtype, 2, length);
      talk.poison(*backend);
      const std::vector<float> whole = talk.run_chunks(*backend, std::vector<std::int64_t>(10, 700));
      for (std::int32_t places = 1; places <= 3; ++places) {
        const Spread spread(*backend, talk, places);
        const std::vector<float> merged = run_in_parts(*backend, talk, spread, random.between(300, 900), random);
        REQUIRE(whole.size() == merged.size());
        CHECK(std::memcmp(whole.data(), merged.data(), whole.size() * sizeof(float)) == 0);
      }
    }
  }
}

TEST_CASE("the reference's parts, merged, are its attention but for their rounding to float32") {
  Random random = fresh_random();
  const std::unique_ptr<Backend> backend = make_reference_backend();
  Conversation talk(*backend, random, 2, 3, DType::kFloat32, 1, kSegmentPositions + 200);
  const std::vector<float> whole = talk.run_chunks(*backend, std::vector<std::int64_t>(10, 700));
  const Spread spread(*backend, talk, 2);
  const std::vector<float> merged = run_in_parts(*backend, talk, spread, 500, random);
  float worst = 0.0F;
  for (std::size_t i = 0; i < whole.size(); ++i) worst = std::max(worst, std::abs(whole[i] - merged[i]));
  CHECK(worst < 1e-6F);
}

TEST_CASE("the CPU's parts are the reference's") {
  Random random = fresh_random();
  const std::unique_ptr<Backend> cpu = make_cpu_backend({2});
  const std::unique_ptr<Backend> reference = make_reference_backend();
  const std::uint64_t seed = random.bits();
  const auto parts_of = [&](Backend& backend) {
    Random same(seed);
    const Conversation talk(backend, same, 3, 20, DType::kFloat32, 1, kSegmentPositions + 100);
    std::vector<std::int32_t> position, sequence(100, 0);
    for (std::int32_t p = 0; p < talk.length; ++p) position.push_back(p);
    sequence.resize(position.size(), 0);
    backend.set_rows({{}, position, sequence, talk.pages, talk.per_sequence});
    backend.append(talk.qkv.view(), talk.kv());
    Array parts(200, part_width(3, 20));
    backend.attention_parts(talk.qkv.view(), talk.kv(), talk.scale, kSegmentPositions, 100, parts.view());
    return parts.values;
  };
  const std::vector<float> got = parts_of(*cpu), want = parts_of(*reference);
  for (std::size_t i = 0; i < got.size(); ++i) {
    REQUIRE(got[i] == doctest::Approx(want[i]).epsilon(1e-4));
  }
}

TEST_CASE("parts that do not fit are refused") {
  const std::unique_ptr<Backend> backend = make_cpu_backend({1});
  const std::vector<std::int32_t> position{70}, sequence{0};
  // Half of a segment elsewhere.
  CHECK_THROWS_AS(backend->set_rows({{}, position, sequence, std::array{0, kElsewhere}, 2}), std::invalid_argument);
  Array qkv(1, 24), parts(1, part_width(1, 8)), two(2, part_width(1, 8)), out(1, 8);
  Buffer base = backend->allocate(2 * backend->kv_page_bytes(1, 8, DType::kFloat32));
  const KvPages kv{base.data(), DType::kFloat32, 2, 1, 8};
  backend->set_rows({{}, position, sequence, std::array{0, 1}, 2});
  CHECK_NOTHROW(backend->attention_parts(qkv.view(), kv, 1.0F, 0, 1, parts.view()));
  CHECK_THROWS_AS(backend->attention_parts(qkv.view(), kv, 1.0F, 0, 1, two.view()), std::invalid_argument);
  CHECK_THROWS_AS(backend->attention_parts(qkv.view(), kv, 1.0F, 1, 1, parts.view()), std::invalid_argument);
  backend->set_rows({{}, position, sequence, std::array{kElsewhere, kElsewhere}, 2});
  CHECK_NOTHROW(backend->append(qkv.view(), kv));
  CHECK_THROWS_AS(backend->attention(qkv.view(), kv, 1.0F, out.view()), std::invalid_argument);
  CHECK_THROWS_AS(backend->attention_parts(qkv.view(), kv, 1.0F, 0, 1, parts.view()), std::invalid_argument);
  CHECK_THROWS_AS(backend->merge_parts(parts.view(), 1, std::array{0, 0}, {}, out.view()), std::invalid_argument);
  CHECK_THROWS_AS(backend->merge_parts(parts.view(), 1, std::array{0, 1}, std::array{1}, out.view()),
                  std::invalid_argument);
}
