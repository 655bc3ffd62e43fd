#include "runtime/stage_weights.hpp"

#include <cstddef>

#include "kernels/convert.hpp"
#include "runtime/tensor_pieces.hpp"

namespace stagecoach {
namespace {

// Of the position embedding, which is read one row at a time and small.
DType table_dtype(DType dtype) {
  return dtype == DType::kInt8 ? DType::kFloat32 : dtype;
}

class Loader {
 public:
  Loader(Backend& backend, const WeightSource& source, DType dtype, std::int64_t total,
         const std::function<void(std::int64_t, std::int64_t)>& progress)
      : backend_(backend), reader_(source), dtype_(dtype), total_(total), progress_(progress) {}

  void matrix(const TensorSpec& spec, WeightLayout layout, Matrix& matrix) {
    const bool in_out = layout == WeightLayout::kInOut;
    matrix = backend_.make_matrix(in_out ? spec.rows : spec.cols, in_out ? spec.cols : spec.rows, dtype_);
    pieces(spec, dtype_, [&](std::int64_t first, Tensor host) { backend_.load_rows(matrix, layout, first, host); });
  }

  void vector(const TensorSpec& spec, Vector& vector) {
    vector.storage = backend_.allocate(aligned(spec.cols * 4));
    vector.view = make_tensor(vector.storage.data(), DType::kFloat32, 1, spec.cols);
    pieces(spec, DType::kFloat32, [&](std::int64_t, Tensor host) { upload(host, DType::kFloat32, vector.view); });
  }

  void table(const TensorSpec& spec, Buffer& storage, Tensor& view) {
    const DType dtype = table_dtype(dtype_);
    storage = backend_.allocate(aligned(spec.elements() * size_of(dtype)));
    view = make_tensor(storage.data(), dtype, spec.rows, spec.cols);
    pieces(spec, dtype, [&](std::int64_t first, Tensor host) { upload(host, dtype, view.slice(first, host.rows)); });
  }

 private:
  template <typename Use>
  void pieces(const TensorSpec& spec, DType to, const Use& use) {
    reader_.read_in_pieces(spec, to, [&](std::int64_t first, Tensor host) {
      use(first, host);
      done_ += host.bytes();
      if (progress_) progress_(done_, total_);
    });
  }

  void upload(Tensor host, DType to, Tensor device) {
    const std::int64_t count = host.rows * host.cols;
    if (host.dtype == to) {
      backend_.upload(device.data, host.data, host.bytes());
      return;
    }
    converted_.resize(static_cast<std::size_t>(count * size_of(to)));
    convert_elements(host.data, host.dtype, converted_.data(), to, count);
    backend_.upload(device.data, converted_.data(), count * size_of(to));
  }

  Backend& backend_;
  TensorReader reader_;
  DType dtype_;
  std::int64_t total_;
  const std::function<void(std::int64_t, std::int64_t)>& progress_;
  std::int64_t done_ = 0;
  std::vector<std::byte> converted_;
};

void load_tensor(Loader& loader, const TensorSpec& spec, BlockRange range, StageWeights& w) {
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
      bytes += aligned(spec.cols * 4);
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
  Loader loader(backend, source, dtype, total, progress);
  for (const TensorSpec& spec : specs) load_tensor(loader, spec, blocks, weights);
  weights.bytes = stage_weight_bytes(backend, config, blocks, dtype);
  return weights;
}

}  // namespace stagecoach
