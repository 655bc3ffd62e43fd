// The packed layout: its bytes written out, rows to panels and back, and backends that are filled with panels.
#include <doctest/doctest.h>

#include <atomic>
#include <limits>
#include <mutex>

#include "kernels/weight_layout.hpp"
#include "tests/rounds.hpp"
#include "tests/unit/kernels_fixture.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

struct Packed {
  Packed(std::int64_t in, std::int64_t out, DType dtype)
      : matrix{{in, out, dtype}, nullptr}, bytes(static_cast<std::size_t>(matrix.layout.bytes())) {
    matrix.data = bytes.data();
  }
  Packed(Packed&&) = default;
  PackedMatrix matrix;
  std::vector<std::byte> bytes;
};

// Rows of one random matrix, as (in, out) and as (out, in).
struct Rows {
  Rows(Random& random, std::int64_t in, std::int64_t out, DType dtype)
      : in_out(static_cast<std::size_t>(in * out * size_of(dtype))), out_in(in_out.size()) {
    view[0] = make_tensor(in_out.data(), dtype, in, out);
    view[1] = make_tensor(out_in.data(), dtype, out, in);
    for (std::int64_t k = 0; k < in; ++k) {
      for (std::int64_t n = 0; n < out; ++n) {
        const float value = random.value();
        store_element(view[0].row(k), dtype, n, value);
        store_element(view[1].row(n), dtype, k, value);
      }
    }
  }
  Packed packed(WeightLayout layout, DType dtype) const {
    Packed result(view[0].rows, view[0].cols, dtype);
    pack_rows(result.matrix, layout, 0, view[layout == WeightLayout::kInOut ? 0 : 1]);
    return result;
  }
  std::vector<std::byte> in_out, out_in;
  Tensor view[2];
};

constexpr DType kFloats[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
constexpr DType kAll[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt8};

// What a product with the matrix gives, row by row of the unit matrix and more.
std::vector<float> product(Backend& backend, const Matrix& w) {
  Array x(w.in + 1, w.in);
  for (std::int64_t k = 0; k < w.in; ++k) x.view().f32(k)[k] = 1.0F;
  for (std::int64_t k = 0; k < w.in; ++k) x.view().f32(w.in)[k] = 0.25F * static_cast<float>(k % 7);
  Array y(w.in + 1, w.out);
  backend.linear(x.view(), w, {}, {}, y.view());
  return y.values;
}

}  // namespace

TEST_CASE("packed layout: float panels to the byte") {
  Packed packed(2, 66, DType::kFloat16);
  Array host(2, 66);
  for (std::int64_t i = 0; i < 132; ++i) host.values[static_cast<std::size_t>(i)] = static_cast<float>(i + 1);
  pack_rows(packed.matrix, WeightLayout::kInOut, 0, host.view());
  CHECK(packed.bytes.size() == 2 * 2 * 64 * 2);
  const auto at = [&](std::int64_t i) { return load_element(packed.bytes.data(), DType::kFloat16, i); };
  CHECK(at(0) == 1.0F);                  // panel 0: (k, n) = (0, 0)
  CHECK(at(63) == 64.0F);                // (0, 63)
  CHECK(at(64) == 67.0F);                // (1, 0)
  CHECK(at(127) == 130.0F);              // (1, 63)
  CHECK(at(128) == 65.0F);               // panel 1: (0, 64)
  CHECK(at(129) == 66.0F);               // (0, 65)
  CHECK(at(128 + 64 + 1) == 132.0F);     // (1, 65)
  for (const std::int64_t k : {0, 1}) {  // columns that the matrix has not
    for (std::int64_t c = 2; c < 64; ++c) CHECK(at(128 + 64 * k + c) == 0.0F);
  }
}

TEST_CASE("packed layout: int8 panels to the byte") {
  Packed packed(131, 1, DType::kInt8);  // a group of 128 inputs, and one of 3
  Array host(131, 1);
  for (std::int64_t k = 0; k < 131; ++k)
    host.values[static_cast<std::size_t>(k)] = static_cast<float>(k < 128 ? k : -k);
  host.values[1] = -127.0F;
  pack_rows(packed.matrix, WeightLayout::kInOut, 0, host.view());
  CHECK(packed.bytes.size() == 256 + 128 * 64 + 256 + 4 * 64);
  const auto scale = [&](std::size_t byte) { return load_element(packed.bytes.data() + byte, DType::kFloat32, 0); };
  const auto value = [&](std::size_t byte) { return static_cast<int>(static_cast<std::int8_t>(packed.bytes[byte])); };
  CHECK(scale(0) == 1.0F);
  CHECK(scale(4) == 0.0F);  // the next column
  CHECK(value(256) == 0);
  CHECK(value(256 + 1) == -127);
  CHECK(value(256 + 128) == 2);  // the next pair of inputs, after 64 columns of two
  CHECK(value(256 + 129) == 3);
  const std::size_t second = 256 + 128 * 64;
  CHECK(scale(second) == 130.0F / 127.0F);
  CHECK(value(second + 256) == -125);  // -128 * 127 / 130
  CHECK(value(second + 256 + 128) == -127);
  CHECK(value(second + 256 + 129) == 0);  // up to an even number
}

TEST_CASE("rows and panels hold the same elements, both ways and in every dtype") {
  Random random = fresh_random();
  for (int round = 0; round < test::rounds(15); ++round) {
    const std::int64_t in = random.between(1, 300);
    const std::int64_t out = random.between(1, 200);
    const DType from = kFloats[random.between(0, 2)];
    CAPTURE(in);
    CAPTURE(out);
    const Rows rows(random, in, out, from);
    for (const DType to : kAll) {
      const Packed packed = rows.packed(WeightLayout::kInOut, to);
      CHECK(rows.packed(WeightLayout::kOutIn, to).bytes == packed.bytes);
      const PackedLayout layout = packed.matrix.layout;
      for (std::int64_t p = 0; p < layout.panels(); ++p) {
        const std::int64_t columns = layout.columns(p);
        Array a(in, columns), b(columns, in);
        unpack_panel(packed.matrix, p, WeightLayout::kInOut, a.view());
        unpack_panel(packed.matrix, p, WeightLayout::kOutIn, b.view());
        std::vector<std::byte> storage(static_cast<std::size_t>(in * (columns + 3) * 4));
        const Tensor same{storage.data(), from, in, columns, columns + 3};  // in the panel's own dtype, rows apart
        unpack_panel(packed.matrix, p, WeightLayout::kInOut, same);
        for (std::int64_t k = 0; k < in; ++k) {
          for (std::int64_t c = 0; c < columns; ++c) {
            const float value = packed_element(packed.matrix, k, p * kPanel + c);
            REQUIRE(a.view().f32(k)[c] == value);
            REQUIRE(b.view().f32(c)[k] == value);
            if (to != from) continue;
            REQUIRE(load_element(same.row(k), from, c) == value);
            REQUIRE(value == load_element(rows.view[0].row(k), from, p * kPanel + c));
          }
        }
      }
      const Packed source = rows.packed(WeightLayout::kInOut, from);
      Packed converted(in, out, to);
      for (std::int64_t p = 0; p < layout.panels(); ++p) {
        convert_panel(source.matrix.layout, source.matrix.panel(p), to, converted.matrix.panel(p));
      }
      CHECK(converted.bytes == packed.bytes);
    }
  }
}

TEST_CASE("a matrix filled with panels is the one filled with rows, on every backend") {
  Random random = fresh_random();
  for (int round = 0; round < test::rounds(10); ++round) {
    const std::int64_t in = random.between(1, 200);
    const std::int64_t out = random.between(1, 900);
    const DType stored = kAll[random.between(0, 3)];
    const DType dtype = stored == DType::kInt8 ? DType::kInt8 : kAll[random.between(0, 3)];
    CAPTURE(in);
    CAPTURE(out);
    CAPTURE(name_of(stored));
    CAPTURE(name_of(dtype));
    const Rows rows(random, in, out, stored == DType::kInt8 ? DType::kFloat32 : stored);
    const Packed packed = rows.packed(WeightLayout::kInOut, stored);
    for (int which = 0; which < 4; ++which) {
      const auto backend = which == 0   ? make_reference_backend()
                           : which == 3 ? make_checking_backend(make_cpu_backend({2, Simd::kBest}))
                                        : make_cpu_backend({which == 1 ? 1 : 3, Simd::kBest});
      Matrix by_rows = backend->make_matrix(in, out, dtype);
      backend->load_rows(by_rows, WeightLayout::kInOut, 0, rows.view[0]);
      Matrix by_panels = backend->make_matrix(in, out, dtype);
      std::vector<std::atomic<int>> reads(static_cast<std::size_t>(packed.matrix.layout.panels()));
      backend->load_panels(by_panels, stored, [&](std::int64_t first, std::int64_t count, std::byte* panels) {
        for (std::int64_t p = first; p < first + count; ++p) ++reads[static_cast<std::size_t>(p)];
        std::memcpy(panels, packed.matrix.panel(first),
                    static_cast<std::size_t>(count * packed.matrix.layout.panel_bytes()));
      });
      for (const std::atomic<int>& count : reads) CHECK(count == 1);
      CHECK(product(*backend, by_rows) == product(*backend, by_panels));
    }
  }
}

TEST_CASE("a reader that throws ends the filling, from any thread, with its first exception") {
  for (const int threads : {1, 2, 4}) {
    const auto backend = make_cpu_backend({threads, Simd::kBest});
    for (const DType stored : {DType::kFloat16, DType::kFloat32}) {
      Matrix matrix = backend->make_matrix(8, 64 * 40, DType::kFloat16);
      for (const std::int64_t bad : {0, 17, 39}) {
        CHECK_THROWS_WITH_AS(backend->load_panels(matrix, stored,
                                                  [&](std::int64_t first, std::int64_t count, std::byte*) {
                                                    if (first <= bad && bad < first + count)
                                                      throw std::runtime_error("no such panel");
                                                  }),
                             "no such panel", std::runtime_error);
      }
    }
  }
  const auto backend = make_cpu_backend({});
  Matrix matrix = backend->make_matrix(8, 8, DType::kFloat16);
  CHECK_THROWS_AS(backend->load_panels(matrix, DType::kInt8, {}), std::invalid_argument);
}

TEST_CASE("values of a panel that are not finite in another dtype are found, the first of them") {
  Packed packed(5, 70, DType::kFloat32);
  const auto find = [&](DType to) { return first_not_finite(packed.matrix.layout, packed.matrix.panel(1), to); };
  CHECK(!find(DType::kFloat16));
  auto* values = reinterpret_cast<float*>(packed.matrix.panel(1));
  values[3 * kPanel + 2] = 70000.0F;
  REQUIRE(find(DType::kFloat16));
  CHECK(find(DType::kFloat16)->k == 3);
  CHECK(find(DType::kFloat16)->column == 2);
  CHECK(find(DType::kFloat16)->value == 70000.0F);
  CHECK(!find(DType::kBFloat16));
  values[2 * kPanel + 5] = std::numeric_limits<float>::infinity();
  CHECK(find(DType::kBFloat16)->k == 2);
  CHECK(find(DType::kInt8)->column == 5);
}
