#include <fmt/format.h>
#include <fmt/ranges.h>

#include "partition/plan_report.hpp"

namespace stagecoach {
namespace {

std::string text_of(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      result += fmt::format("\\{}", c);
    } else if (byte < 0x20) {
      result += fmt::format("\\u{:04x}", byte);
    } else {
      result += c;
    }
  }
  return result + '"';
}

std::string stage_json(const PlanReport& r, std::size_t s) {
  const PlannedStage& stage = r.plan.stages[s];
  const StageBytes& b = stage.bytes;
  const DeviceLayout& layout = r.request.devices[static_cast<std::size_t>(stage.device)].layout;
  const std::int64_t rows = longest_chunk(r.plan.chunks);
  const StageWorkload prefill = stage_workload(r.request.model, stage.blocks, layout, prompt_chunk(0, rows));
  const StageWorkload decode = stage_workload(r.request.model, stage.blocks, layout, decode_step(1, r.positions() - 1));
  return fmt::format(
      "{{\"blocks\": [{}, {}], \"device\": {}, \"host\": {}, \"weight_bytes\": {}, \"kv_bytes\": {}, "
      "\"workspace_bytes\": {}, "
      "\"residual_bytes\": {}, \"scratch_bytes\": {}, \"host_bytes\": {}, \"process_bytes\": {}, \"needed_bytes\": {}, "
      "\"budget_bytes\": {}, \"fits\": {}, \"kv_bytes_per_token\": {:.0f}, \"sent_bytes_per_token\": {}, \"chunk_s\": "
      "{:.6g}, "
      "\"step_s\": {:.6g}, \"busy_s\": {:.6g}, \"bubble\": {:.4f}, \"prefill_flops\": {:.6g}, \"prefill_bytes\": "
      "{:.6g}, "
      "\"decode_flops\": {:.6g}, \"decode_bytes\": {:.6g}}}",
      stage.blocks.first, stage.blocks.last, text_of(r.device_names[s]),
      s < r.hosts.size() && !r.hosts[s].empty() ? text_of(r.hosts[s]) : "null", b.weights, b.kv, b.workspace,
      b.residuals, b.scratch, b.host, stage.process_bytes, stage.needed_bytes(),
      stage.budget_bytes ? fmt::format("{}", *stage.budget_bytes) : "null", stage.fits(),
      kv_bytes_per_token(stage.blocks, layout),
      s + 1 < r.plan.stages.size() ? residual_bytes(1, r.request.model.n_embd) : 0, stage.prompt_s, stage.decode_s,
      r.plan.prediction.busy_s[s], r.plan.prediction.bubble[s], prefill.flops, prefill.bytes, decode.flops,
      decode.bytes);
}

}  // namespace

std::string plan_json(const PlanReport& r) {
  std::vector<std::string> stages;
  for (std::size_t s = 0; s < r.plan.stages.size(); ++s) stages.push_back(stage_json(r, s));
  std::vector<std::string> ways;
  for (const Alternative& way : r.other_ways) {
    ways.push_back(
        fmt::format("{{\"stages\": {}, \"replicas\": {}, \"context_shards\": {}, \"fits\": {}, \"total_s\": {:.6g}, "
                    "\"ttft_s\": {:.6g}}}",
                    way.stages, way.replicas, way.shards, way.fits, way.total_s, way.ttft_s));
  }
  std::vector<std::string> notes;
  for (const std::string& note : r.notes) notes.push_back(text_of(note));
  const Prediction& p = r.plan.prediction;
  return fmt::format(
      "{{\"model\": {}, \"dtype\": \"{}\", \"kv_dtype\": \"{}\", \"parameters\": {}, \"fits\": {}, \"replicas\": {}, "
      "\"context_shards\": {}, \"in_flight\": {}, "
      "\"sequences\": {}, \"positions\": {}, \"prompt_tokens\": {}, \"new_tokens\": {}, \"pages\": {}, "
      "\"chunk_tokens\": [{}], \"measured\": {}, \"ttft_s\": {:.6g}, \"all_prefilled_s\": {:.6g}, \"total_s\": {:.6g}, "
      "\"prefill_tokens_per_s\": {:.6g}, \"decode_tokens_per_s\": {:.6g}, \"uniform_ttft_s\": {}, "
      "\"most_positions\": {}, \"most_sequences\": {}, \"stages\": [{}], \"other_ways\": [{}], \"notes\": [{}]}}\n",
      text_of(r.model), r.dtype, r.kv_dtype, r.parameters, r.plan.fits(), r.replicas, r.request.shards,
      r.plan.in_flight, r.plan.slots, r.positions(), r.request.job.prompt_tokens, r.request.job.new_tokens,
      r.plan.pages, fmt::join(r.plan.chunks, ", "), r.measured, p.ttft_s, p.all_prefilled_s, p.total_s,
      p.prefill_tokens_per_s, p.decode_tokens_per_s,
      r.plan.uniform_ttft_s > 0.0 ? fmt::format("{:.6g}", r.plan.uniform_ttft_s) : "null", r.most_positions,
      r.most_sequences, fmt::join(stages, ", "), fmt::join(ways, ", "), fmt::join(notes, ", "));
}

}  // namespace stagecoach
