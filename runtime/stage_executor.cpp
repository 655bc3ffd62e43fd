#include "runtime/stage_executor.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "partition/stage_bytes.hpp"
#include "runtime/device_layout.hpp"

namespace stagecoach {
namespace {

Activation activation_of(ActivationName name) {
  switch (name) {
    case ActivationName::kGeluNew:
    case ActivationName::kGeluPytorchTanh:
      return Activation::kGeluTanh;
    case ActivationName::kGelu:
      return Activation::kGeluErf;
    case ActivationName::kRelu:
      return Activation::kRelu;
    case ActivationName::kSilu:
      return Activation::kSilu;
  }
  throw std::invalid_argument("unknown activation");
}

StageWork work_of(const StageLimits& limits, ShardPlace place) {
  return {.max_rows = limits.max_rows, .pages = limits.pages, .slots = limits.slots, .shards = place.shards};
}

}  // namespace

StageExecutor::StageExecutor(Backend& backend, const ModelConfig& config, BlockRange blocks, StageWeights weights,
                             const StageLimits& limits, const ShardLinks* links)
    : backend_(backend),
      config_(config),
      blocks_(blocks),
      limits_(limits),
      place_(links == nullptr ? ShardPlace{} : links->place),
      weights_(std::move(weights)),
      cache_(backend,
             {blocks.count(), config.n_head, config.head_dim(), limits.kv_dtype, limits.pages, limits.slots, place_}),
      sampler_(limits.slots, config.vocab_size),
      activation_(activation_of(config.activation)),
      picker_(backend, stage_workspace(config, blocks, work_of(limits, place_)).head_rows, config.vocab_size) {
  const DType weights_dtype = weights_.blocks.at(0).qkv.dtype;
  const DeviceLayout layout = device_layout(backend.layout(), config, weights_dtype, limits.kv_dtype);
  const StageWork work = work_of(limits, place_);
  backend.reserve(operation_limits(stage_operations(config, blocks, layout, work), config, weights_dtype));
  const Workspace shape = stage_workspace(config, blocks, work);
  const DType activation = backend.activation_dtype(weights_dtype);
  workspace_ = backend.allocate(shape.bytes(layout.activation_bytes));
  std::byte* next = static_cast<std::byte*>(workspace_.data());
  const auto carve = [&next](DType dtype, std::int64_t rows, std::int64_t cols) {
    const Tensor tensor = make_tensor(next, dtype, rows, cols);
    next += aligned(tensor.bytes());
    return tensor;
  };
  narrow_ = carve(activation, shape.rows, shape.narrow);
  wide_ = carve(activation, shape.rows, shape.wide);
  logits_ = carve(DType::kFloat32, shape.head_rows, shape.vocab);
  picked_ = carve(DType::kFloat32, shape.head_rows, shape.narrow);
  if (place_.shards == 1) return;
  sharded_ = std::make_unique<ShardedAttention>(
      backend, *links,
      ShardedShape{config.n_head, config.head_dim(), activation, sharded_workspace(config, layout, work)});
}

StageExecutor::~StageExecutor() {
  backend_.forget_steps();
}

std::int64_t StageExecutor::own_rows(const Microbatch& microbatch) const {
  return stagecoach::own_rows(static_cast<std::int64_t>(microbatch.rows.size()), place_);
}

TokenBatch StageExecutor::run(const Microbatch& microbatch, Tensor residual, const Progress& progress,
                              const Waiting& waiting) {
  cache_.apply(microbatch.commands);
  if (is_last()) {
    sampler_.apply(microbatch.commands);
    sampler_.feed(microbatch.rows);
  }
  TokenBatch picked;
  picked.id = microbatch.id;
  if (microbatch.rows.empty()) return picked;
  if (residual.rows != own_rows(microbatch) || microbatch.rows.size() > static_cast<std::size_t>(limits_.max_rows)) {
    throw std::invalid_argument(fmt::format("microbatch {} has {} rows, its residual {}, the limit is {}",
                                            microbatch.id, microbatch.rows.size(), residual.rows, limits_.max_rows));
  }
  read_rows(microbatch);
  if (sharded_) {
    run_sharded(residual, progress, waiting);
  } else {
    run_all(residual, progress);
  }
  if (is_last()) picked = pick_tokens(microbatch, residual, progress);
  check_weights();
  return picked;
}

void StageExecutor::run_all(Tensor residual, const Progress& progress) {
  set_rows(0, residual.rows);
  Tensor padded = residual;
  padded.rows = backend_.pad_rows(residual.rows, limits_.max_rows);
  // Of this executor's calls nothing else differs from step to step.
  const Backend::StepKey key{reinterpret_cast<std::uintptr_t>(this), reinterpret_cast<std::uintptr_t>(residual.data),
                             static_cast<std::uintptr_t>(padded.rows)};
  backend_.step(key, progress, [&](const Progress& between) {
    if (is_first()) backend_.embed(weights_.token_embedding, weights_.position_embedding, padded);
    for (std::int32_t block = 0; block < blocks_.count(); ++block) run_block(block, padded, between, {});
  });
}

// Waits for others between its operations, so it is no step that could be recorded.
void StageExecutor::run_sharded(Tensor residual, const Progress& progress, const Waiting& waiting) {
  const auto rows = static_cast<std::int64_t>(positions_.size());
  if (is_first() && residual.rows > 0) {
    set_rows(rows_before(rows, place_.shard, place_.shards), residual.rows);
    backend_.embed(weights_.token_embedding, weights_.position_embedding, residual);
  }
  set_rows(0, rows);
  sharded_->set_rows(positions_, row_tables_);
  for (std::int32_t block = 0; block < blocks_.count(); ++block) run_block(block, residual, progress, waiting);
}

// What the next operations work on: some of the rows.
void StageExecutor::set_rows(std::int64_t first, std::int64_t count) {
  const auto part = [&](const std::vector<std::int32_t>& all) {
    return std::span(all).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
  };
  backend_.set_rows({part(tokens_), part(positions_), part(sequences_), tables_, table_stride_});
}

void StageExecutor::read_rows(const Microbatch& microbatch) {
  tokens_.clear();
  positions_.clear();
  sequences_.clear();
  row_tables_.clear();
  std::vector<std::int32_t> slots;  // distinct ones in order: rows of a slot are adjacent
  std::size_t widest = 1;
  for (const Row& row : microbatch.rows) {
    if (slots.empty() || slots.back() != row.slot) {
      slots.push_back(row.slot);
      widest = std::max(widest, cache_.table(row.slot).size());
    }
    const std::size_t pages = cache_.table(row.slot).size();
    if (row.position < 0 || static_cast<std::size_t>(row.position / kPagePositions) >= pages) {
      throw WireError(fmt::format("microbatch {}: position {} of slot {} lies beyond its {} pages", microbatch.id,
                                  row.position, row.slot, pages));
    }
    tokens_.push_back(row.token);
    positions_.push_back(row.position);
    sequences_.push_back(static_cast<std::int32_t>(slots.size()) - 1);
    if (sharded_) row_tables_.push_back(cache_.table(row.slot));
  }
  tables_.assign(slots.size() * widest, 0);
  table_stride_ = static_cast<std::int64_t>(widest);
  const auto here = [this](std::int32_t page) {
    return shard_of_page(page, place_.shards) == place_.shard ? page_in_shard(page, place_.shards) : kElsewhere;
  };
  for (std::size_t s = 0; s < slots.size(); ++s) {
    std::ranges::transform(cache_.table(slots[s]), tables_.begin() + static_cast<std::ptrdiff_t>(s * widest), here);
  }
}

void StageExecutor::check_weights() const {
  if (weights_.mapped != nullptr) weights_.mapped->check_mapped();
}

void StageExecutor::run_block(std::int32_t local_block, Tensor residual, const Progress& progress,
                              const Waiting& waiting) {
  const BlockWeights& w = weights_.blocks[static_cast<std::size_t>(local_block)];
  const std::int64_t rows = residual.rows;
  const auto wide = [&](std::int64_t cols) { return make_tensor(wide_.data, wide_.dtype, rows, cols); };
  const Tensor narrow = narrow_.slice(0, rows);
  const Tensor qkv = sharded_ ? sharded_->own_qkv() : wide(3LL * config_.n_embd);
  const Tensor inner = wide(config_.n_inner);
  const float epsilon = config_.layer_norm_epsilon;
  const Epilogue add{Activation::kNone, true};
  const Backend::Norm first{w.ln1_gain.view, w.ln1_bias.view, epsilon};
  const Backend::Norm second{w.ln2_gain.view, w.ln2_bias.view, epsilon};

  const KvPages pages = cache_.pages(local_block);
  const float scale = config_.attention_scale(blocks_.first + local_block);
  if (rows > 0) backend_.norm_linear(residual, first, narrow, w.qkv, w.qkv_bias.view, {}, qkv);
  progress();
  if (sharded_) {
    check_weights();  // the other shards get to see what was computed
    sharded_->run(pages, scale, narrow, progress, waiting);
    if (rows == 0) return;
  } else {
    backend_.attention(qkv, pages, scale, narrow);
  }
  progress();
  backend_.linear(narrow, w.proj, w.proj_bias.view, add, residual);
  backend_.norm_linear(residual, second, narrow, w.fc, w.fc_bias.view, {activation_, false}, inner);
  progress();
  backend_.linear(inner, w.out, w.out_bias.view, add, residual);
  progress();
}

std::span<const float> StageExecutor::last_logits() {
  const Tensor logits = logits_.slice(0, last_rows_);
  last_logits_.resize(static_cast<std::size_t>(logits.rows * logits.cols));
  backend_.download(last_logits_.data(), logits.data, logits.bytes());
  return last_logits_;
}

TokenBatch StageExecutor::pick_tokens(const Microbatch& microbatch, Tensor residual, const Progress& progress) {
  TokenBatch result;
  result.id = microbatch.id;
  const std::span<const Row> rows =
      std::span(microbatch.rows)
          .subspan(static_cast<std::size_t>(
                       rows_before(static_cast<std::int64_t>(microbatch.rows.size()), place_.shard, place_.shards)),
                   static_cast<std::size_t>(residual.rows));
  std::vector<std::int32_t> wanted;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    if (wants_logits(rows[r])) wanted.push_back(static_cast<std::int32_t>(r));
  }
  for (std::size_t first = 0; first < wanted.size(); first += static_cast<std::size_t>(picked_.rows)) {
    const std::size_t count = std::min(wanted.size() - first, static_cast<std::size_t>(picked_.rows));
    const Tensor chosen = picked_.slice(0, static_cast<std::int64_t>(count));
    const Tensor normal = narrow_.slice(0, static_cast<std::int64_t>(count));
    const Tensor logits = logits_.slice(0, static_cast<std::int64_t>(count));
    backend_.gather(residual, std::span(wanted).subspan(first, count), chosen);
    backend_.layer_norm(chosen, weights_.final_gain.view, weights_.final_bias.view, config_.layer_norm_epsilon, normal);
    backend_.linear(normal, weights_.head(), {}, {}, logits);
    last_rows_ = logits.rows;
    wanted_rows_.clear();
    for (std::size_t i = 0; i < count; ++i) {
      wanted_rows_.push_back(rows[static_cast<std::size_t>(wanted[first + i])]);
    }
    picker_.pick(sampler_, wanted_rows_, logits, progress, result.tokens);
    progress();
  }
  return result;
}

}  // namespace stagecoach
