#include "partition/cost.hpp"

#include <algorithm>

namespace stagecoach {
namespace {

double real(std::int64_t n) {
  return static_cast<double>(n);
}

bool has_head(const ModelConfig& model, BlockRange blocks) {
  return blocks.last == model.n_layer - 1;
}

double head_seconds(const ModelConfig& model, const DeviceSpeed& speed, std::int64_t rows) {
  const std::int64_t full = rows / kHeadRows;
  const std::int64_t rest = rows % kHeadRows;
  double per_element = real(full) * speed.head.at(kHeadRows);
  if (rest > 0) per_element += speed.head.at(real(rest));
  return per_element * real(head_elements(model));
}

}  // namespace

MicrobatchWork prompt_chunk(std::int64_t first_position, std::int64_t rows) {
  MicrobatchWork work;
  work.prompt_rows = rows;
  work.first_position = first_position;
  return work;
}

MicrobatchWork decode_step(std::int64_t sequences, std::int64_t position) {
  MicrobatchWork work;
  work.decode_rows = sequences;
  work.decode_keys = sequences * (position + 1);
  work.logits_rows = sequences;
  return work;
}

std::int64_t block_matrix_elements(const ModelConfig& model) {
  const std::int64_t n = model.n_embd;
  return 4 * n * n + 2 * n * model.n_inner;
}

std::int64_t head_elements(const ModelConfig& model) {
  return std::int64_t{model.n_embd} * model.vocab_size;
}

double kv_bytes_per_token(BlockRange blocks, const DeviceLayout& layout) {
  return real(stage_page_bytes(blocks, layout)) / real(layout.page_positions);
}

double stage_seconds(const ModelConfig& model, BlockRange blocks, const DeviceSpeed& speed,
                     const MicrobatchWork& work) {
  const double rows = real(work.rows());
  const double attention = speed.attention.at(real(work.prompt_rows)) * work.prompt_keys() +
                           speed.attention.at(1.0) * real(work.decode_keys);
  const double block =
      speed.product.at(rows) * real(block_matrix_elements(model)) + speed.row_s * rows + attention * real(model.n_embd);
  double seconds = speed.microbatch_s + block * blocks.count();
  if (has_head(model, blocks) && work.logits_rows > 0) seconds += head_seconds(model, speed, work.logits_rows);
  return seconds;
}

double link_seconds(const ModelConfig& model, const LinkSpeed& link, std::int64_t rows) {
  return link.latency_s + real(residual_bytes(rows, model.n_embd)) * link.byte_s;
}

StageWorkload stage_workload(const ModelConfig& model, BlockRange blocks, const DeviceLayout& layout,
                             const MicrobatchWork& work) {
  StageWorkload load;
  const double keys = work.prompt_keys() + real(work.decode_keys);
  load.flops =
      blocks.count() * (2.0 * real(work.rows()) * real(block_matrix_elements(model)) + 4.0 * keys * real(model.n_embd));
  load.bytes = kv_bytes_per_token(blocks, layout) * real(work.first_position + work.prompt_rows + work.decode_keys);
  for (const TensorSpec& tensor : stage_tensors(model, blocks)) {
    if (tensor.place == TensorPlace::kBlock) load.bytes += real(tensor_bytes(tensor, layout));
  }
  if (has_head(model, blocks) && work.logits_rows > 0) {
    load.flops += 2.0 * real(work.logits_rows) * real(head_elements(model));
    load.bytes += real(layout.matrix_bytes(model.n_embd, model.vocab_size));
  }
  return load;
}

}  // namespace stagecoach
