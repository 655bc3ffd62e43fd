#include "partition/plan.hpp"

#include <fmt/format.h>

#include <utility>

namespace stagecoach {

std::optional<DeviceWish> parse_device(std::string_view text) {
  if (text == "auto") return DeviceWish{};
  if (text == "cpu") return DeviceWish{DeviceKind::kCpu, {}};
  if (text == "cuda") return DeviceWish{DeviceKind::kCuda, {}};
  constexpr std::string_view kPrefix = "cuda:";
  if (!text.starts_with(kPrefix)) return std::nullopt;
  const std::string_view digits = text.substr(kPrefix.size());
  if (digits.empty() || digits.size() > 4 || digits.find_first_not_of("0123456789") != std::string_view::npos) {
    return std::nullopt;
  }
  return DeviceWish{DeviceKind::kCuda, std::stoi(std::string(digits))};
}

std::vector<StageSpec> even_split(const ModelConfig& model, std::int32_t stages) {
  if (stages < 1) throw PlanError(fmt::format("{} stages: at least one is needed", stages));
  if (stages > model.n_layer) {
    throw PlanError(fmt::format("{} stages but the model has only {} blocks; use at most {} stages (ranks)", stages,
                                model.n_layer, model.n_layer));
  }
  const std::int32_t each = model.n_layer / stages;
  const std::int32_t larger = model.n_layer % stages;  // the first `larger` stages take one block more
  std::vector<StageSpec> result;
  std::int32_t next = 0;
  for (std::int32_t s = 0; s < stages; ++s) {
    const std::int32_t count = each + (s < larger ? 1 : 0);
    StageSpec spec;
    spec.blocks = {next, next + count - 1};
    result.push_back(std::move(spec));
    next += count;
  }
  return result;
}

void validate(const Plan& plan) {
  validate(plan.model);
  if (plan.stages.empty()) throw PlanError("the plan has no stages");
  std::int32_t next = 0;
  for (std::size_t s = 0; s < plan.stages.size(); ++s) {
    const BlockRange blocks = plan.stages[s].blocks;
    if (blocks.first > blocks.last) {
      throw PlanError(fmt::format("stage {}: blocks [{}, {}] are in the wrong order", s, blocks.first, blocks.last));
    }
    if (blocks.last >= plan.model.n_layer || blocks.first < 0) {
      throw PlanError(fmt::format("stage {}: blocks [{}, {}] but the model has blocks 0 to {}", s, blocks.first,
                                  blocks.last, plan.model.n_layer - 1));
    }
    if (blocks.first != next) {
      const char* what = blocks.first > next ? "leaves out" : "repeats";
      throw PlanError(fmt::format("stage {}: blocks [{}, {}]: {} blocks, the stage must begin with block {}", s,
                                  blocks.first, blocks.last, what, next));
    }
    next = blocks.last + 1;
  }
  if (next != plan.model.n_layer) {
    throw PlanError(
        fmt::format("the stages end with block {} but the model's last block is {}", next - 1, plan.model.n_layer - 1));
  }
  if (plan.chunk_tokens < 1)
    throw PlanError(fmt::format("chunk_tokens is {}, it must be 1 or more", plan.chunk_tokens));
  if (!plan.chunks.empty()) {
    for (const std::int32_t length : plan.chunks) {
      if (length < 1) throw PlanError(fmt::format("chunk_tokens has {}, chunks must be of 1 or more", length));
    }
    if (longest_chunk(plan.chunks) != plan.chunk_tokens) {
      throw PlanError(fmt::format("chunk_tokens is {} but the longest chunk has {}", plan.chunk_tokens,
                                  longest_chunk(plan.chunks)));
    }
  }
  if (plan.in_flight < 1) throw PlanError(fmt::format("in_flight is {}, it must be 1 or more", plan.in_flight));
  if (plan.shards < 1) throw PlanError(fmt::format("context_shards is {}, it must be 1 or more", plan.shards));
}

}  // namespace stagecoach
