#include "partition/cost.hpp"

#include <algorithm>

namespace stagecoach {
namespace {

double real(std::int64_t n) {
  return static_cast<double>(n);
}

std::int64_t segments_of(std::int64_t positions, std::int64_t unit) {
  return std::max<std::int64_t>(1, largest_part(positions, unit));
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

double exchange_bytes(const ModelConfig& model, const MicrobatchWork& work, const ShardCost& shards) {
  if (shards.shards == 1) return 0.0;
  const std::int64_t unit = shards.segment_positions;
  // Segments that rows at positions before `n` see, all together.
  const auto seen_before = [unit](std::int64_t n) {
    const std::int64_t whole = n / unit;
    return real(unit) * real(whole) * real(whole + 1) / 2.0 + real(n % unit) * real(whole + 1);
  };
  double parts = seen_before(work.first_position + work.prompt_rows) - seen_before(work.first_position);
  if (work.decode_rows > 0) {
    parts += real(work.decode_rows) * real(segments_of(work.decode_keys / work.decode_rows, unit));
  }
  const double others = real(shards.shards - 1);
  return real(work.rows()) * others * 3.0 * real(model.n_embd * shards.activation_bytes) +
         parts * others / real(shards.shards) * 4.0 * real(model.n_embd + 2LL * model.n_head);
}

double ring_bytes(const ModelConfig& model, const MicrobatchWork& chunk, const ShardCost& shards) {
  return 8.0 * real(chunk.first_position + chunk.prompt_rows) * real(shards.shards - 1) * real(model.n_embd);
}

double stage_seconds(const ModelConfig& model, BlockRange blocks, const DeviceSpeed& speed, const MicrobatchWork& work,
                     const ShardCost& shards) {
  const double rows = real(largest_part(work.rows(), shards.shards));
  const std::int64_t prompt_segments = segments_of(work.first_position + work.prompt_rows, shards.segment_positions);
  const double prompt_share =
      real(largest_part(prompt_segments, shards.shards)) / real(std::max<std::int64_t>(1, prompt_segments));
  const std::int64_t decode_segments =
      work.decode_rows == 0
          ? 1
          : work.decode_rows * segments_of(work.decode_keys / work.decode_rows, shards.segment_positions);
  const double decode_share = real(largest_part(decode_segments, shards.shards)) / real(decode_segments);
  const double attention = speed.attention.at(real(work.prompt_rows)) * work.prompt_keys() * prompt_share +
                           speed.attention.at(1.0) * real(work.decode_keys) * decode_share;
  double block =
      speed.product.at(rows) * real(block_matrix_elements(model)) + speed.row_s * rows + attention * real(model.n_embd);
  if (shards.shards > 1) {
    block += 2.0 * shards.link.latency_s * real(shards.shards - 1) +
             exchange_bytes(model, work, shards) / real(shards.shards) * shards.link.byte_s;
  }
  double seconds = speed.microbatch_s + block * blocks.count();
  if (has_head(model, blocks) && work.logits_rows > 0) {
    seconds += head_seconds(model, speed, largest_part(work.logits_rows, shards.shards));
  }
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
