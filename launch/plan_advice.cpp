#include "launch/plan_advice.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "partition/plan_report.hpp"
#include "partition/wording.hpp"

namespace stagecoach {
namespace {

constexpr std::size_t kMostNamed = 8;  // stages that lack memory

// The fewest stages, each with a device like the last one, that have room; 0 when no number has.
std::int32_t stages_needed(PlanRequest request, std::int32_t from) {
  request.cut.reset();
  const PlannerDevice last = request.devices.back();
  request.devices.resize(static_cast<std::size_t>(request.model.n_layer), last);
  request.in_flight.reset();
  std::int32_t high = request.model.n_layer;
  const auto with = [&](std::int32_t stages) {
    PlanRequest r = request;
    r.stages = stages;
    r.devices.resize(static_cast<std::size_t>(stages), last);
    return can_fit(r);
  };
  // More stages mean fewer blocks for each, but also more microbatches in flight: take the first that fits.
  for (std::int32_t stages = from; stages <= std::min(high, from + 64); ++stages) {
    if (with(stages)) return stages;
  }
  return 0;
}

}  // namespace

std::string fit_advice(const PlanRequest& request, const PipelinePlan& plan, const std::vector<OtherDTypes>& others) {
  std::vector<std::string> lacking;
  std::size_t count = 0;
  for (std::size_t s = 0; s < plan.stages.size(); ++s) {
    const PlannedStage& stage = plan.stages[s];
    if (stage.fits() || ++count > kMostNamed) continue;
    lacking.push_back(fmt::format(
        "stage {} (blocks {} to {}) needs {} (weights {}, KV cache {}, other {}), available {}", s, stage.blocks.first,
        stage.blocks.last, readable_bytes(stage.needed_bytes()), readable_bytes(stage.bytes.weights),
        readable_bytes(stage.bytes.kv), readable_bytes(stage.needed_bytes() - stage.bytes.weights - stage.bytes.kv),
        readable_bytes(*stage.budget_bytes)));
  }
  if (count > kMostNamed) lacking.push_back(fmt::format("{} stages more", count - kMostNamed));

  std::vector<std::string> instead;
  const std::int64_t sequences = request.job.sequences;
  if (sequences > 1) {
    const std::int64_t fewer = most_sequences(request, plan, request.job.prompt_tokens + request.job.new_tokens - 1);
    if (fewer > 0) instead.push_back(fmt::format("--batch {}", std::min(fewer, sequences)));
  }
  const std::int64_t positions = most_positions(request, plan, sequences);
  if (positions > 0) instead.push_back(fmt::format("--context {}", positions));
  for (const OtherDTypes& other : others) {
    if (can_fit(other.request)) instead.push_back(other.option);
  }
  const std::int32_t stages = stages_needed(request, static_cast<std::int32_t>(plan.stages.size()) + 1);
  if (stages > 0) instead.push_back(fmt::format("{} stages of such devices", stages));
  return fmt::format("does not fit: {}; {}", fmt::join(lacking, "; "),
                     instead.empty() ? std::string("nothing smaller fits either; give more memory to each rank")
                                     : fmt::format("what would fit: {}", fmt::join(instead, ", or ")));
}

}  // namespace stagecoach
