#include "runtime/stage_weights.hpp"

#include <cstddef>

#include "kernels/convert.hpp"
#include "runtime/piece_stream.hpp"

namespace stagecoach {
namespace {

// Of the position embedding, which is read one row at a time and small.
DType table_dtype(DType dtype) {
  return dtype == DType::kInt8 ? DType::kFloat32 : dtype;
}

// What pieces of a tensor are checked against and converted to.
DType dtype_on_backend(const Backend& backend, const TensorSpec& spec, DType dtype) {
  if (spec.role == TensorRole::kQkvBias || spec.role == TensorRole::kFcBias) return backend.activation_dtype(dtype);
  if (spec.is_vector) return DType::kFloat32;
  return spec.role == TensorRole::kPositionEmbedding ? table_dtype(dtype) : dtype;
}

// Where one tensor goes: makes its place on the backend, then takes its pieces.
class Loader {
 public:
  Loader(Backend& backend, DType dtype) : backend_(backend), dtype_(dtype) {}

  void matrix(const TensorSpec& spec, WeightLayout layout, Matrix& matrix) {
    const bool in_out = layout == WeightLayout::kInOut;
    matrix = backend_.make_matrix(in_out ? spec.rows : spec.cols, in_out ? spec.cols : spec.rows, dtype_);
    use_ = [this, layout, &matrix](std::int64_t first, Tensor host) {
      backend_.load_rows(matrix, layout, first, host);
    };
  }

  void vector(const TensorSpec& spec, Vector& vector) { table(spec, vector.storage, vector.view); }

  void table(const TensorSpec& spec, Buffer& storage, Tensor& view) {
    const DType dtype = dtype_on_backend(backend_, spec, dtype_);
    storage = backend_.allocate(aligned(spec.elements() * size_of(dtype)));
    view = make_tensor(storage.data(), dtype, spec.rows, spec.cols);
    use_ = [this, &view](std::int64_t first, Tensor host) { upload(host, view.slice(first, host.rows)); };
  }

  void take(std::int64_t first_row, Tensor host) { use_(first_row, host); }

 private:
  void upload(Tensor host, Tensor device) {
    const std::int64_t count = host.rows * host.cols;
    if (host.dtype == device.dtype) {
      backend_.upload(device.data, host.data, host.bytes());
      return;
    }
    converted_.resize(static_cast<std::size_t>(count * size_of(device.dtype)));
    convert_elements(host.data, host.dtype, converted_.data(), device.dtype, count);
    backend_.upload(device.data, converted_.data(), count * size_of(device.dtype));
  }

  Backend& backend_;
  DType dtype_;
  std::function<void(std::int64_t first_row, Tensor host)> use_;
  std::vector<std::byte> converted_;
};

void begin_tensor(Loader& loader, const TensorSpec& spec, BlockRange range, StageWeights& w) {
  BlockWeights* block =
      spec.place == TensorPlace::kBlock ? &w.blocks[static_cast<std::size_t>(spec.block - range.first)] : nullptr;
  switch (spec.role) {
    case TensorRole::kTokenEmbedding:
      return loader.matrix(spec, WeightLayout::kOutIn, w.token_embedding);
    case TensorRole::kPositionEmbedding:
      return loader.table(spec, w.position_storage, w.position_embedding);
    case TensorRole::kLn1Gain:
      return loader.vector(spec, block->ln1_gain);
    case TensorRole::kLn1Bias:
      return loader.vector(spec, block->ln1_bias);
    case TensorRole::kQkvWeight:
      return loader.matrix(spec, WeightLayout::kInOut, block->qkv);
    case TensorRole::kQkvBias:
      return loader.vector(spec, block->qkv_bias);
    case TensorRole::kProjWeight:
      return loader.matrix(spec, WeightLayout::kInOut, block->proj);
    case TensorRole::kProjBias:
      return loader.vector(spec, block->proj_bias);
    case TensorRole::kLn2Gain:
      return loader.vector(spec, block->ln2_gain);
    case TensorRole::kLn2Bias:
      return loader.vector(spec, block->ln2_bias);
    case TensorRole::kFcWeight:
      return loader.matrix(spec, WeightLayout::kInOut, block->fc);
    case TensorRole::kFcBias:
      return loader.vector(spec, block->fc_bias);
    case TensorRole::kOutWeight:
      return loader.matrix(spec, WeightLayout::kInOut, block->out);
    case TensorRole::kOutBias:
      return loader.vector(spec, block->out_bias);
    case TensorRole::kFinalGain:
      return loader.vector(spec, w.final_gain);
    case TensorRole::kFinalBias:
      return loader.vector(spec, w.final_bias);
    case TensorRole::kHeadWeight:
      return loader.matrix(spec, WeightLayout::kOutIn, w.separate_head);
  }
}

}  // namespace

std::int64_t stage_weight_bytes(const Backend& backend, const ModelConfig& config, BlockRange blocks, DType dtype) {
  std::int64_t bytes = 0;
  for (const TensorSpec& spec : stage_tensors(config, blocks)) {
    const bool out_in = spec.role == TensorRole::kTokenEmbedding || spec.role == TensorRole::kHeadWeight;
    if (spec.is_vector) {
      bytes += aligned(spec.cols * size_of(dtype_on_backend(backend, spec, dtype)));
    } else if (spec.role == TensorRole::kPositionEmbedding) {
      bytes += aligned(spec.elements() * size_of(table_dtype(dtype)));
    } else {
      bytes += backend.matrix_bytes(out_in ? spec.cols : spec.rows, out_in ? spec.rows : spec.cols, dtype);
    }
  }
  return bytes;
}

StageWeights load_stage(Backend& backend, const WeightSource& source, const ModelConfig& config, BlockRange blocks,
                        DType dtype, const std::function<void(std::int64_t, std::int64_t)>& progress) {
  const std::vector<TensorSpec> specs = stage_tensors(config, blocks);
  std::int64_t total = 0;
  for (const TensorSpec& spec : specs) total += spec.elements() * size_of(source.dtype_of(spec));
  StageWeights weights;
  weights.blocks.resize(static_cast<std::size_t>(blocks.count()));
  Loader loader(backend, dtype);
  PieceStream stream(source, specs, [&](const TensorSpec& spec) { return dtype_on_backend(backend, spec, dtype); });
  std::int64_t done = 0;
  while (const std::optional<PieceStream::Piece> piece = stream.next()) {
    if (piece->first_row == 0) begin_tensor(loader, *piece->spec, blocks, weights);
    loader.take(piece->first_row, piece->host);
    done += piece->host.bytes();
    if (progress) progress(done, total);
  }
  weights.bytes = stage_weight_bytes(backend, config, blocks, dtype);
  return weights;
}

}  // namespace stagecoach
