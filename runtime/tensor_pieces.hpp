// Whole tensors, read in pieces that fit a small buffer and verified on the way.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/tensor.hpp"
#include "runtime/checksum.hpp"
#include "runtime/weight_source.hpp"

namespace stagecoach {

// Host staging: large enough for sequential reads at full speed, small beside any device.
constexpr std::int64_t kPieceBytes = 8 << 20;

// Owns the buffer, so that many tensors share one. For one thread.
class TensorReader {
 public:
  explicit TensorReader(const WeightSource& source) : source_(source) {}

  // Reads `spec` in runs of whole rows, in order, and hands each to `use(first_row, host rows)`; then has the source
  // verify the checksum, if it has one. Throws WeightError.
  template <typename Use>
  void read_in_pieces(const TensorSpec& spec, const Use& use) {
    const DType stored = source_.dtype_of(spec);
    const bool verify = source_.has_checksum(spec);
    const std::int64_t row_bytes = spec.cols * size_of(stored);
    const std::int64_t rows_each = std::clamp<std::int64_t>(kPieceBytes / row_bytes, 1, spec.rows);
    staging_.resize(static_cast<std::size_t>(rows_each * row_bytes));
    hash_.reset();
    for (std::int64_t first = 0; first < spec.rows; first += rows_each) {
      const std::int64_t rows = std::min(rows_each, spec.rows - first);
      const std::span<std::byte> bytes = std::span(staging_).first(static_cast<std::size_t>(rows * row_bytes));
      source_.read_rows(spec, first, rows, bytes);
      if (verify) hash_.update(bytes);
      use(first, make_tensor(bytes.data(), stored, rows, spec.cols));
    }
    if (verify) source_.verify(spec, hash_.value());
  }

 private:
  const WeightSource& source_;
  std::vector<std::byte> staging_;
  Xxh3 hash_;
};

}  // namespace stagecoach
