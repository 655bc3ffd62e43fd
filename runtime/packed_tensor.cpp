#include "runtime/packed_tensor.hpp"

#include <span>
#include <utility>

#include "runtime/checksum.hpp"
#include "runtime/tensor_pieces.hpp"

namespace stagecoach {

WeightLayout row_layout_of(const TensorSpec& matrix) {
  const bool out_in = matrix.role == TensorRole::kTokenEmbedding || matrix.role == TensorRole::kHeadWeight;
  return out_in ? WeightLayout::kOutIn : WeightLayout::kInOut;
}

PackedLayout packed_layout_of(const TensorSpec& matrix, DType dtype) {
  const MatrixShape shape = matrix_shape(matrix);
  return {shape.in, shape.out, dtype};
}

std::vector<std::int64_t> stored_shape(const TensorSpec& spec, DType dtype, bool packed) {
  if (spec.is_vector) return {spec.cols};
  if (!packed) return {spec.rows, spec.cols};
  const PackedLayout layout = packed_layout_of(spec, dtype);
  if (dtype == DType::kInt8) return {layout.panels(), layout.panel_bytes()};
  return {layout.panels(), layout.in, kPanel};
}

std::int64_t stored_bytes(const WeightSource& source, const TensorSpec& spec) {
  const DType dtype = source.dtype_of(spec);
  return source.is_packed(spec) ? packed_layout_of(spec, dtype).bytes() : spec.elements() * size_of(dtype);
}

std::uint64_t checksum_of_panels(const std::vector<std::uint64_t>& panels) {
  return xxh3_of(std::as_bytes(std::span(panels)));
}

PackedReader::PackedReader(const WeightSource& source, const TensorSpec& spec, DType to)
    : source_(source), spec_(spec), to_(to), layout_(packed_layout_of(spec, source.dtype_of(spec))) {
  checksums_.resize(static_cast<std::size_t>(layout_.panels()));
}

void PackedReader::read(std::int64_t first, std::int64_t count, std::byte* panels) {
  const auto bytes = static_cast<std::size_t>(layout_.panel_bytes());
  for (std::int64_t p = first; p < first + count; ++p, panels += bytes) {  // each checked while it is in the cache
    source_.read_panels(spec_, p, 1, {panels, bytes});
    checksums_[static_cast<std::size_t>(p)] = xxh3_of({panels, bytes});
    if (to_ == layout_.dtype) continue;
    const std::optional<PanelPlace> place = first_not_finite(layout_, panels, to_);
    if (!place) continue;
    const std::lock_guard lock(mutex_);
    if (!broken_ || p < broken_->panel) broken_ = Broken{p, *place};
  }
}

void PackedReader::finish() const {
  if (source_.checksum_of(spec_)) source_.verify(spec_, checksum_of_panels(checksums_));
  if (!broken_) return;
  const std::int64_t n = broken_->panel * kPanel + broken_->place.column;
  const bool in_out = row_layout_of(spec_) == WeightLayout::kInOut;
  const std::int64_t row = in_out ? broken_->place.k : n;
  const std::int64_t col = in_out ? n : broken_->place.k;
  throw WeightError(broken_value(source_, spec_, row, col, broken_->place.value, to_));
}

}  // namespace stagecoach
