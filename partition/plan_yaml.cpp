#include <fmt/format.h>
#include <fmt/ranges.h>

#include "partition/plan_report.hpp"
#include "partition/wording.hpp"
#include "partition/yaml_values.hpp"

namespace stagecoach {

std::string plan_run_file(const PlanReport& r) {
  const std::size_t ranks = r.plan.stages.size() * static_cast<std::size_t>(r.replicas * r.request.shards);
  std::string text = fmt::format(
      "# Written by stagecoach plan for {} sequence{} of {} positions: start {} rank{}, or one process without "
      "mpirun.\n"
      "model: {}\ndtype: {}\nkv_dtype: {}\n",
      r.plan.slots, r.plan.slots == 1 ? "" : "s", r.positions(), ranks, ranks == 1 ? "" : "s", yaml_text(r.model),
      r.dtype, r.kv_dtype);
  if (!r.machine_path.empty()) text += fmt::format("machine: {}\n", yaml_text(r.machine_path));
  text += "pipeline:\n";
  if (r.replicas > 1) text += fmt::format("  replicas: {}\n", r.replicas);
  if (r.request.shards > 1) text += fmt::format("  context_shards: {}\n", r.request.shards);
  text += "  stages:\n";
  for (std::size_t s = 0; s < r.plan.stages.size(); ++s) {
    const PlannedStage& stage = r.plan.stages[s];
    text += fmt::format("    - {{blocks: [{}, {}]", stage.blocks.first, stage.blocks.last);
    if (s < r.hosts.size() && !r.hosts[s].empty()) text += fmt::format(", host: {}", yaml_text(r.hosts[s]));
    if (stage.budget_bytes) text += fmt::format(", memory: {}", *stage.budget_bytes);
    text +=
        fmt::format("}}  # {}, {} needed\n", readable_bytes(stage.bytes.weights), readable_bytes(stage.needed_bytes()));
  }
  if (r.plan.chunks.size() == 1) {
    text += fmt::format("  chunk_tokens: {}\n", r.plan.chunks.front());
  } else {
    text += fmt::format("  chunk_tokens: [{}]\n", fmt::join(r.plan.chunks, ", "));
  }
  text += fmt::format("  in_flight: {}\n", r.plan.in_flight);
  return text;
}

}  // namespace stagecoach
