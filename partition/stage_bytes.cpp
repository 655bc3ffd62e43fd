#include "partition/stage_bytes.hpp"

#include <algorithm>

namespace stagecoach {
namespace {

// What an allocation of `bytes` counts.
std::int64_t counted(std::int64_t bytes, const DeviceLayout& layout) {
  const std::int64_t unit = layout.unit_bytes;
  return unit == 1 ? bytes : (std::max<std::int64_t>(bytes, 1) + unit - 1) / unit * unit;
}

bool is_last(const ModelConfig& model, BlockRange blocks) {
  return blocks.last == model.n_layer - 1;
}

// Biases of what stays inside a block are of its activations' dtype; gains and what is added to the residual stream are
// float32.
std::int64_t element_bytes(TensorRole role, const DeviceLayout& layout) {
  if (role == TensorRole::kQkvBias || role == TensorRole::kFcBias) return layout.activation_bytes;
  return role == TensorRole::kPositionEmbedding ? layout.table_bytes : 4;
}

}  // namespace

bool is_matrix(const TensorSpec& tensor) {
  return !tensor.is_vector && tensor.role != TensorRole::kPositionEmbedding;
}

MatrixShape matrix_shape(const TensorSpec& matrix) {
  const bool out_in = matrix.role == TensorRole::kTokenEmbedding || matrix.role == TensorRole::kHeadWeight;
  return out_in ? MatrixShape{matrix.cols, matrix.rows} : MatrixShape{matrix.rows, matrix.cols};
}

std::int64_t tensor_bytes(const TensorSpec& tensor, const DeviceLayout& layout) {
  if (is_matrix(tensor)) {
    const MatrixShape shape = matrix_shape(tensor);
    return counted(layout.matrix_bytes(shape.in, shape.out), layout);
  }
  return counted(aligned(tensor.elements() * element_bytes(tensor.role, layout)), layout);
}

std::int64_t stage_weight_bytes(const ModelConfig& model, BlockRange blocks, const DeviceLayout& layout) {
  std::int64_t bytes = 0;
  for (const TensorSpec& tensor : stage_tensors(model, blocks)) bytes += tensor_bytes(tensor, layout);
  return bytes;
}

std::int64_t stage_page_bytes(BlockRange blocks, const DeviceLayout& layout) {
  return blocks.count() * layout.kv_page_bytes;
}

std::int64_t Workspace::bytes(std::int64_t activation_bytes) const {
  return aligned(rows * narrow * activation_bytes) + aligned(rows * wide * activation_bytes) +
         aligned(head_rows * vocab * 4) + aligned(head_rows * narrow * 4);
}

Workspace stage_workspace(const ModelConfig& model, BlockRange blocks, const StageWork& work) {
  Workspace workspace;
  workspace.rows = work.own_rows();
  workspace.narrow = model.n_embd;
  workspace.wide = work.shards > 1 ? model.n_inner : std::max<std::int64_t>(3LL * model.n_embd, model.n_inner);
  workspace.head_rows = is_last(model, blocks) ? std::min<std::int64_t>(kHeadRows, work.own_rows()) : 0;
  workspace.vocab = model.vocab_size;
  return workspace;
}

std::int64_t ShardedWorkspace::bytes(std::int64_t activation_bytes) const {
  return aligned(rows * qkv * activation_bytes) + aligned(parts * part_values * 4);
}

std::int64_t ShardedWorkspace::exchanged_bytes(std::int64_t activation_bytes) const {
  return 2 * (own_rows * qkv * activation_bytes + own_parts * part_values * 4);
}

// Segments of a sequence are dealt out in turn. A shard has the parts that it makes, of all rows, and those that it
// gets, of its own.
ShardedWorkspace sharded_workspace(const ModelConfig& model, const DeviceLayout& layout, const StageWork& work) {
  if (work.shards == 1) return {};
  const std::int64_t segments = largest_part(model.n_positions, layout.page_positions * layout.segment_pages);
  const std::int64_t here =
      std::min(largest_part(segments, work.shards), largest_part(work.pages, layout.segment_pages));
  const std::int64_t elsewhere = std::min(segments, here * (work.shards - 1));
  ShardedWorkspace workspace;
  workspace.rows = work.max_rows;
  workspace.qkv = 3LL * model.n_embd;
  workspace.parts = work.max_rows * here + work.own_rows() * elsewhere;
  workspace.part_values = model.n_embd + 2LL * model.n_head;
  workspace.own_rows = work.own_rows();
  workspace.own_parts = work.own_rows() * here;
  workspace.merged_parts = work.own_rows() * (here + elsewhere);
  return workspace;
}

StageOperations stage_operations(const ModelConfig& model, BlockRange blocks, const DeviceLayout& layout,
                                 const StageWork& work) {
  const std::int64_t table = (model.n_positions + layout.page_positions - 1) / layout.page_positions;
  StageOperations operations;
  operations.rows = work.max_rows;
  operations.columns = std::max(model.n_embd, model.n_inner);
  operations.table_words =
      std::min(work.max_rows, work.slots) * std::min<std::int64_t>(table, std::int64_t{work.pages} * work.shards);
  operations.head_rows = stage_workspace(model, blocks, work).head_rows;
  operations.parts = sharded_workspace(model, layout, work).merged_parts;
  return operations;
}

StageBytes& StageBytes::operator+=(const StageBytes& other) {
  weights += other.weights;
  kv += other.kv;
  workspace += other.workspace;
  residuals += other.residuals;
  scratch += other.scratch;
  host += other.host;
  return *this;
}

StageBytes stage_bytes(const ModelConfig& model, BlockRange blocks, const DeviceLayout& layout, const StageWork& work) {
  const Workspace workspace = stage_workspace(model, blocks, work);
  const ShardedWorkspace sharded = sharded_workspace(model, layout, work);
  const std::int64_t buffers = residual_buffers(work.in_flight);
  const std::int64_t buffer_bytes = residual_bytes(work.own_rows(), model.n_embd);
  StageBytes bytes;
  bytes.weights = stage_weight_bytes(model, blocks, layout);
  bytes.kv = blocks.count() * counted(work.pages * layout.kv_page_bytes, layout);
  bytes.workspace = counted(workspace.bytes(layout.activation_bytes), layout);
  if (work.shards > 1) bytes.workspace += counted(sharded.bytes(layout.activation_bytes), layout);
  bytes.residuals = buffers * counted(buffer_bytes, layout);
  bytes.scratch = layout.own_bytes(stage_operations(model, blocks, layout, work));
  if (layout.in_host_memory) return bytes;
  if (workspace.head_rows > 0) {
    bytes.workspace += counted(workspace.head_rows * layout.summary_bytes, layout);
    bytes.host += workspace.head_rows * (layout.summary_bytes + workspace.vocab * 4);
  }
  if (work.stages > 1) bytes.host += buffers * buffer_bytes;
  bytes.host += (work.shards - 1) * sharded.exchanged_bytes(layout.activation_bytes);
  return bytes;
}

}  // namespace stagecoach
