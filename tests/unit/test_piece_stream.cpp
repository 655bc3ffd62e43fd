// Reading ahead: every piece once and in order, errors after what came before them, and an end at any moment.
#include <doctest/doctest.h>

#include <cstring>
#include <numeric>

#include "kernels/host_memory.hpp"
#include "partition/model.hpp"
#include "runtime/piece_stream.hpp"

using namespace stagecoach;

namespace {

// Element i of a tensor is i; from row `broken_row` of tensor `broken` on, reading throws.
class CountingSource final : public WeightSource {
 public:
  DType dtype_of(const TensorSpec&) const override { return DType::kFloat32; }
  void read_rows(const TensorSpec& spec, std::int64_t first, std::int64_t rows,
                 std::span<std::byte> out) const override {
    if (spec.name == broken && first + rows > broken_row) throw WeightError("tensor " + spec.name + " is broken");
    std::vector<float> values(static_cast<std::size_t>(rows * spec.cols));
    std::iota(values.begin(), values.end(), static_cast<float>(first * spec.cols));
    std::memcpy(out.data(), values.data(), out.size());
  }
  std::int64_t bytes_read() const override { return 0; }

  std::string broken;
  std::int64_t broken_row = 0;
};

// Large enough for several pieces each, and small ones between.
std::vector<TensorSpec> specs() {
  std::vector<TensorSpec> result;
  for (const auto& [rows, cols] : {std::pair{3000, 700}, {1, 5}, {129, 4000}, {1, 1}, {1000, 1000}}) {
    TensorSpec spec;
    spec.name = "t" + std::to_string(result.size());
    spec.rows = rows;
    spec.cols = cols;
    result.push_back(spec);
  }
  return result;
}

DType as_float(const TensorSpec&) {
  return DType::kFloat32;
}

// A stream with memory of its own.
struct Stream {
  Stream(const WeightSource& source, std::span<const TensorSpec> all, std::function<DType(const TensorSpec&)> dtype_of)
      : stream(source, all, std::move(dtype_of), [this](std::int64_t bytes) { return memory.allocate(bytes); }) {}
  std::optional<PieceStream::Piece> next() { return stream.next(); }

  HostMemory memory;
  PieceStream stream;
};

}  // namespace

TEST_CASE("pieces come once, in order, in whole int8 groups but for the last") {
  const CountingSource source;
  const std::vector<TensorSpec> all = specs();
  Stream stream(source, all, as_float);
  std::size_t tensor = 0;
  std::int64_t next_row = 0;
  int pieces = 0;
  while (const std::optional<PieceStream::Piece> piece = stream.next()) {
    ++pieces;
    REQUIRE(piece->spec == &all[tensor]);
    REQUIRE(piece->first_row == next_row);
    REQUIRE(piece->host.cols == all[tensor].cols);
    for (const std::int64_t r : {std::int64_t{0}, piece->host.rows - 1}) {
      CHECK(piece->host.f32(r)[0] == static_cast<float>((next_row + r) * piece->host.cols));
    }
    next_row += piece->host.rows;
    const bool last = next_row == all[tensor].rows;
    CHECK((last || piece->host.rows % kInt8Group == 0));
    if (last) {
      ++tensor;
      next_row = 0;
    }
  }
  CHECK(tensor == all.size());
  CHECK(pieces > 7);
  CHECK_FALSE(stream.next());
}

TEST_CASE("an error of the source comes after the pieces before it") {
  CountingSource source;
  source.broken = "t2";
  const std::vector<TensorSpec> all = specs();
  Stream stream(source, all, as_float);
  int before = 0;
  std::string message;
  try {
    while (stream.next()) ++before;
  } catch (const WeightError& error) {
    message = error.what();
  }
  CHECK(message == "tensor t2 is broken");
  CHECK(before > 1);
}

TEST_CASE("a stream that is left early ends, whatever its thread does") {
  const CountingSource source;
  const std::vector<TensorSpec> all = specs();
  for (int taken = 0; taken < 12; ++taken) {
    Stream stream(source, all, as_float);
    for (int i = 0; i < taken; ++i) stream.next();
  }
}
