// Whole tensors, read in pieces that fit a small buffer and verified on the way: against their checksum where there is
// one, and for values that are no finite numbers, which would spread through the model unseen.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "kernels/convert.hpp"
#include "kernels/host_memory.hpp"
#include "kernels/int8.hpp"
#include "kernels/tensor.hpp"
#include "runtime/checksum.hpp"
#include "runtime/weight_source.hpp"

namespace stagecoach {

// Host staging: large enough for sequential reads at full speed, small beside any device.
constexpr std::int64_t kPieceBytes = 2 << 20;

// What is wrong with an element of a tensor that is not finite or too large for `to`.
std::string broken_value(const WeightSource& source, const TensorSpec& spec, std::int64_t row, std::int64_t col,
                         float value, DType to);

// For one thread.
class TensorReader {
 public:
  // Where the next piece goes: at least so many bytes, aligned to a page (copies out of the page cache to 16 bytes
  // after a page's start, where large vectors begin, run at a quarter of the speed on some processors).
  using Staging = std::function<std::byte*(std::size_t bytes)>;

  // With a buffer of its own, which many tensors share.
  explicit TensorReader(const WeightSource& source)
      : source_(source), staging_([this](std::size_t bytes) { return own_buffer(bytes); }) {}
  TensorReader(const WeightSource& source, Staging staging) : source_(source), staging_(std::move(staging)) {}
  TensorReader(const TensorReader&) = delete;
  TensorReader& operator=(const TensorReader&) = delete;

  // Bytes of the largest piece of a tensor of `stored`.
  static std::int64_t piece_bytes(const TensorSpec& spec, DType stored) {
    return rows_of_piece(spec, stored) * spec.cols * size_of(stored);
  }

  // Reads `spec` in runs of whole rows (whole groups of kInt8Group but for the last), in order, and hands each to
  // `use(first_row, host rows)`; then has the source verify the checksum, if it has one. Throws WeightError, also for a
  // value that is not finite or that `to` (the dtype that the caller converts to; as stored when there is none) cannot
  // hold.
  template <typename Use>
  void read_in_pieces(const TensorSpec& spec, std::optional<DType> to, const Use& use) {
    const DType stored = source_.dtype_of(spec);
    const bool verify = source_.checksum_of(spec).has_value();
    const std::int64_t row_bytes = spec.cols * size_of(stored);
    const std::int64_t rows_each = rows_of_piece(spec, stored);
    hash_.reset();
    std::string broken;  // told only once the checksum matches: otherwise damage is the better word for it
    for (std::int64_t first = 0; first < spec.rows; first += rows_each) {
      const std::int64_t rows = std::min(rows_each, spec.rows - first);
      const std::span<std::byte> bytes = std::span(staging_(static_cast<std::size_t>(rows_each * row_bytes)),
                                                   static_cast<std::size_t>(rows * row_bytes));
      source_.read_rows(spec, first, rows, bytes);
      if (verify) hash_.update(bytes);
      const Tensor piece = make_tensor(bytes.data(), stored, rows, spec.cols);
      if (broken.empty()) broken = broken_value(spec, first, piece, to.value_or(stored));
      if (!broken.empty() && !verify) throw WeightError(broken);
      use(first, piece);
    }
    if (verify) source_.verify(spec, hash_.value());
    if (!broken.empty()) throw WeightError(broken);
  }

 private:
  static std::int64_t rows_of_piece(const TensorSpec& spec, DType stored) {
    const std::int64_t groups = kPieceBytes / (spec.cols * size_of(stored)) / kInt8Group;
    return std::min(std::max<std::int64_t>(1, groups) * kInt8Group, spec.rows);
  }

  // Never shrinks, since growing clears it.
  std::byte* own_buffer(std::size_t bytes) {
    if (buffer_.bytes() < bytes) {
      buffer_ = Buffer();
      buffer_ = memory_.allocate(static_cast<std::int64_t>(bytes));
    }
    return static_cast<std::byte*>(buffer_.data());
  }

  // What is wrong with the first value that is not finite or too large for `to`; empty when there is none.
  std::string broken_value(const TensorSpec& spec, std::int64_t first_row, Tensor piece, DType to) const {
    const std::int64_t at = first_not_finite(piece.data, piece.dtype, to, piece.rows * piece.cols);
    if (at < 0) return "";
    const float value = load_element(piece.data, piece.dtype, at);
    return stagecoach::broken_value(source_, spec, first_row + at / spec.cols, at % spec.cols, value, to);
  }

  const WeightSource& source_;
  HostMemory memory_;
  Buffer buffer_;
  Staging staging_;
  Xxh3 hash_;
};

}  // namespace stagecoach
