#include "runtime/stage_weights.hpp"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <thread>

#include "kernels/convert.hpp"
#include "kernels/host_memory.hpp"
#include "partition/stage_bytes.hpp"
#include "runtime/device_layout.hpp"
#include "runtime/packed_tensor.hpp"
#include "runtime/piece_stream.hpp"

namespace stagecoach {
namespace {

constexpr std::uintptr_t kPanelAlignment = 64;  // MemoryLayout::has_panels

// Of the position embedding, which is read one row at a time and small.
DType table_dtype(DType dtype) {
  return dtype == DType::kInt8 ? DType::kFloat32 : dtype;
}

// What pieces of a tensor are checked against and converted to.
DType dtype_on_backend(const MemoryLayout& layout, const TensorSpec& spec, DType dtype) {
  if (spec.role == TensorRole::kQkvBias || spec.role == TensorRole::kFcBias) return layout.activation_dtype(dtype);
  if (spec.is_vector) return DType::kFloat32;
  return spec.role == TensorRole::kPositionEmbedding ? table_dtype(dtype) : dtype;
}

// Where one tensor goes: makes its place on the backend, then takes its pieces.
class Loader {
 public:
  Loader(Backend& backend, const WeightSource& source, DType dtype, std::function<Buffer(std::int64_t)> allocate_host)
      : backend_(backend), source_(source), dtype_(dtype), allocate_host_(std::move(allocate_host)) {}

  void matrix(const TensorSpec& spec, Matrix& matrix) {
    const auto [in, out, dtype] = packed_layout_of(spec, dtype_);
    const std::span<const std::byte> mapped = mapped_for_backend(spec);
    matrix = mapped.empty() ? backend_.make_matrix(in, out, dtype) : Matrix{in, out, dtype, borrowed(mapped)};
    uses_mapped_ = uses_mapped_ || !mapped.empty();
    matrix_ = &matrix;
    use_ = [this, layout = row_layout_of(spec), &matrix](std::int64_t first, Tensor host) {
      backend_.load_rows(matrix, layout, first, host);
    };
  }

  void vector(const TensorSpec& spec, Vector& vector) { table(spec, vector.storage, vector.view); }

  void table(const TensorSpec& spec, Buffer& storage, Tensor& view) {
    const DType dtype = dtype_on_backend(backend_.layout(), spec, dtype_);
    storage = backend_.allocate(aligned(spec.elements() * size_of(dtype)));
    view = make_tensor(storage.data(), dtype, spec.rows, spec.cols);
    use_ = [this, &view](std::int64_t first, Tensor host) { upload(host, view.slice(first, host.rows)); };
  }

  void take(std::int64_t first_row, Tensor host) { use_(first_row, host); }

  // All of the matrix at once. `progress(bytes)` is called after each run of panels, on this thread.
  void take_panels(const TensorSpec& spec, const std::function<void(std::int64_t)>& progress) {
    PackedReader reader(source_, spec, dtype_);
    std::atomic<std::int64_t> bytes = 0;
    backend_.load_panels(*matrix_, reader.layout().dtype,
                         [&, here = std::this_thread::get_id()](std::int64_t first, std::int64_t count, std::byte* to) {
                           reader.read(first, count, to);
                           bytes += count * reader.layout().panel_bytes();
                           if (std::this_thread::get_id() == here) progress(bytes);
                         });
    if (uses_mapped_) source_.check_mapped();
    reader.finish();
    progress(bytes);
  }

  bool uses_mapped() const { return uses_mapped_; }

 private:
  std::span<const std::byte> mapped_for_backend(const TensorSpec& spec) const {
    const bool as_stored = source_.dtype_of(spec) == dtype_ && backend_.layout().has_panels();
    const std::span<const std::byte> mapped = as_stored ? source_.mapped_panels(spec) : std::span<const std::byte>{};
    const bool aligned_panels = reinterpret_cast<std::uintptr_t>(mapped.data()) % kPanelAlignment == 0;
    return aligned_panels ? mapped : std::span<const std::byte>{};
  }

  // Nothing writes there: read_panels finds the panels in their place.
  static Buffer borrowed(std::span<const std::byte> mapped) {
    return {const_cast<std::byte*>(mapped.data()), mapped.size(), [](void*, void*, std::size_t) noexcept {}, nullptr};
  }

  void upload(Tensor host, Tensor device) {
    const std::int64_t count = host.rows * host.cols;
    if (host.dtype == device.dtype) {
      backend_.upload(device.data, host.data, host.bytes());
      return;
    }
    const std::int64_t bytes = count * size_of(device.dtype);
    if (static_cast<std::int64_t>(converted_.bytes()) < bytes) {
      converted_ = Buffer();
      converted_ = allocate_host_(bytes);
    }
    convert_elements(host.data, host.dtype, converted_.data(), device.dtype, count);
    backend_.upload(device.data, converted_.data(), bytes);
  }

  Backend& backend_;
  const WeightSource& source_;
  DType dtype_;
  bool uses_mapped_ = false;
  Matrix* matrix_ = nullptr;  // the last one made
  std::function<void(std::int64_t first_row, Tensor host)> use_;
  std::function<Buffer(std::int64_t)> allocate_host_;
  Buffer converted_;
};

void begin_tensor(Loader& loader, const TensorSpec& spec, BlockRange range, StageWeights& w) {
  BlockWeights* block =
      spec.place == TensorPlace::kBlock ? &w.blocks[static_cast<std::size_t>(spec.block - range.first)] : nullptr;
  switch (spec.role) {
    case TensorRole::kTokenEmbedding:
      return loader.matrix(spec, w.token_embedding);
    case TensorRole::kPositionEmbedding:
      return loader.table(spec, w.position_storage, w.position_embedding);
    case TensorRole::kLn1Gain:
      return loader.vector(spec, block->ln1_gain);
    case TensorRole::kLn1Bias:
      return loader.vector(spec, block->ln1_bias);
    case TensorRole::kQkvWeight:
      return loader.matrix(spec, block->qkv);
    case TensorRole::kQkvBias:
      return loader.vector(spec, block->qkv_bias);
    case TensorRole::kProjWeight:
      return loader.matrix(spec, block->proj);
    case TensorRole::kProjBias:
      return loader.vector(spec, block->proj_bias);
    case TensorRole::kLn2Gain:
      return loader.vector(spec, block->ln2_gain);
    case TensorRole::kLn2Bias:
      return loader.vector(spec, block->ln2_bias);
    case TensorRole::kFcWeight:
      return loader.matrix(spec, block->fc);
    case TensorRole::kFcBias:
      return loader.vector(spec, block->fc_bias);
    case TensorRole::kOutWeight:
      return loader.matrix(spec, block->out);
    case TensorRole::kOutBias:
      return loader.vector(spec, block->out_bias);
    case TensorRole::kFinalGain:
      return loader.vector(spec, w.final_gain);
    case TensorRole::kFinalBias:
      return loader.vector(spec, w.final_bias);
    case TensorRole::kHeadWeight:
      return loader.matrix(spec, w.separate_head);
  }
}

}  // namespace

std::int64_t loading_bytes(const WeightSource& source, const ModelConfig& config, BlockRange blocks, DType dtype,
                           const MemoryLayout& layout) {
  std::int64_t piece = 0;
  std::int64_t converted = 0;
  std::int64_t panels = 0;
  for (const TensorSpec& spec : stage_tensors(config, blocks)) {
    const DType stored = source.dtype_of(spec);
    if (source.is_packed(spec)) {
      const PackedLayout packed = packed_layout_of(spec, dtype);
      panels = std::max(panels, layout.staging_bytes(packed.in, packed.out, stored, dtype));
      continue;
    }
    piece = std::max(piece, TensorReader::piece_bytes(spec, stored));
    const DType target = dtype_on_backend(layout, spec, dtype);
    if (!is_matrix(spec) && stored != target) {
      converted = std::max(converted, TensorReader::piece_bytes(spec, stored) / size_of(stored) * size_of(target));
    }
  }
  return std::max(static_cast<std::int64_t>(PieceStream::kPiecesAhead) * piece, panels) + converted;
}

StageWeights load_stage(Backend& backend, const WeightSource& source, const ModelConfig& config, BlockRange blocks,
                        DType dtype, const std::function<void(std::int64_t, std::int64_t)>& progress) {
  std::vector<TensorSpec> specs = stage_tensors(config, blocks);
  const auto packed = std::ranges::stable_partition(specs, [&](const auto& spec) { return !source.is_packed(spec); });
  std::int64_t total = 0;
  for (const TensorSpec& spec : specs) total += stored_bytes(source, spec);
  StageWeights weights;
  weights.blocks.resize(static_cast<std::size_t>(blocks.count()));
  HostMemory beside;  // a device with memory of its own; otherwise the backend counts what passes through
  const auto allocate_host = [&](std::int64_t bytes) {
    return backend.in_host_memory() ? backend.allocate(bytes) : beside.allocate(bytes);
  };
  Loader loader(backend, source, dtype, allocate_host);
  std::int64_t done = 0;
  {
    PieceStream stream(
        source, {specs.begin(), packed.begin()},
        [&](const TensorSpec& spec) { return dtype_on_backend(backend.layout(), spec, dtype); }, allocate_host);
    while (const std::optional<PieceStream::Piece> piece = stream.next()) {
      if (piece->first_row == 0) begin_tensor(loader, *piece->spec, blocks, weights);
      loader.take(piece->first_row, piece->host);
      done += piece->host.bytes();
      if (progress) progress(done, total);
    }
  }
  for (const TensorSpec& spec : packed) {
    begin_tensor(loader, spec, blocks, weights);
    loader.take_panels(spec, [&](std::int64_t bytes) {
      if (progress) progress(done + bytes, total);
    });
    done += stored_bytes(source, spec);
  }
  if (loader.uses_mapped()) weights.mapped = &source;
  weights.bytes = stage_weight_bytes(config, blocks, device_layout(backend.layout(), config, dtype, DType::kFloat32));
  return weights;
}

}  // namespace stagecoach
