#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "partition/plan_report.hpp"
#include "partition/wording.hpp"

namespace stagecoach {
namespace {

constexpr std::int64_t kBarWidth = 40;

// Of the budget, or of the largest stage where there is none: w weights, k KV cache, a activations and scratch, p
// process.
std::string bar(const PlannedStage& stage, std::int64_t whole) {
  const auto cells = [&](std::int64_t bytes) {
    return static_cast<std::int64_t>(static_cast<double>(bytes) / static_cast<double>(whole) * kBarWidth + 0.5);
  };
  const std::int64_t kv = stage.bytes.weights + stage.bytes.kv;
  const std::int64_t rest = stage.bytes.device();
  std::string text;
  const auto fill = [&](std::int64_t until, char c) {
    while (static_cast<std::int64_t>(text.size()) < std::min(cells(until), 2 * kBarWidth)) text += c;
  };
  fill(stage.bytes.weights, 'w');
  fill(kv, 'k');
  fill(rest, 'a');
  fill(stage.needed_bytes(), 'p');
  const bool over = static_cast<std::int64_t>(text.size()) > kBarWidth;
  while (static_cast<std::int64_t>(text.size()) < kBarWidth) text += '.';
  if (over) text = text.substr(0, static_cast<std::size_t>(kBarWidth)) + '>';
  return text;
}

std::string seconds_text(double s) {
  if (s < 1e-3) return fmt::format("{:.0f} us", s * 1e6);
  if (s < 1.0) return fmt::format("{:.1f} ms", s * 1e3);
  return fmt::format("{:.2f} s", s);
}

std::string stage_table(const PlanReport& r) {
  std::string text =
      fmt::format("  {:>5} {:>9}  {:<20} {:>10} {:>10} {:>10} {:>10} {:>10} {:>9} {:>9} {:>7}\n", "stage", "blocks",
                  "device", "weights", "KV cache", "other", "needed", "budget", "chunk", "step", "bubble");
  for (std::size_t s = 0; s < r.plan.stages.size(); ++s) {
    const PlannedStage& stage = r.plan.stages[s];
    const std::string on = s < r.hosts.size() && !r.hosts[s].empty() ? " on " + printable(r.hosts[s]) : "";
    const std::int64_t other = stage.needed_bytes() - stage.bytes.weights - stage.bytes.kv;
    text += fmt::format("  {:>5} {:>9}  {:<20.20} {:>10} {:>10} {:>10} {:>10} {:>10} {:>9} {:>9} {:>5.0f} %\n", s,
                        fmt::format("{}-{}", stage.blocks.first, stage.blocks.last), r.device_names[s] + on,
                        readable_bytes(stage.bytes.weights), readable_bytes(stage.bytes.kv), readable_bytes(other),
                        readable_bytes(stage.needed_bytes()),
                        stage.budget_bytes ? readable_bytes(*stage.budget_bytes) : "-", seconds_text(stage.prompt_s),
                        seconds_text(stage.decode_s), 100.0 * r.plan.prediction.bubble[s]);
  }
  return text;
}

std::string bars(const PlanReport& r) {
  std::int64_t largest = 1;
  for (const PlannedStage& stage : r.plan.stages) largest = std::max(largest, stage.needed_bytes());
  std::string text = r.has_budgets ? "\nmemory within the budget" : "\nmemory, the largest stage as a whole";
  text += " (w weights, k KV cache, a activations and scratch, p process):\n";
  for (std::size_t s = 0; s < r.plan.stages.size(); ++s) {
    const PlannedStage& stage = r.plan.stages[s];
    const std::int64_t whole = stage.budget_bytes.value_or(largest);
    text += fmt::format("  {:>5} [{}] {:.0f} %\n", s, bar(stage, whole),
                        100.0 * static_cast<double>(stage.needed_bytes()) / static_cast<double>(whole));
  }
  return text;
}

std::string prediction_text(const PlanReport& r) {
  const Prediction& p = r.plan.prediction;
  std::string text =
      fmt::format("\nprediction ({}):\n", r.measured ? "speeds from the machine file"
                                                     : "speeds assumed; measure yours with stagecoach profile");
  text += fmt::format("  first token after {}, all prompts in after {}, all done after {}\n", seconds_text(p.ttft_s),
                      seconds_text(p.all_prefilled_s), seconds_text(p.total_s));
  text += fmt::format("  prefill {:.4g} tokens/s", p.prefill_tokens_per_s);
  if (p.decode_tokens_per_s > 0.0) text += fmt::format(", decode {:.4g} tokens/s", p.decode_tokens_per_s);
  text += '\n';
  if (r.request.shards > 1) {
    const std::int64_t prompt = r.request.job.prompt_tokens;
    const std::int64_t rows = std::min<std::int64_t>(prompt, longest_chunk(r.plan.chunks));
    const MicrobatchWork chunk = prompt_chunk(prompt - rows, rows);
    const ShardCost& cost = r.plan.pipeline.stages.front().shards;
    const auto size = [](double bytes) { return readable_bytes(static_cast<std::int64_t>(bytes)); };
    text += fmt::format(
        "  shards exchange queries and partial sums, {} for the last chunk and block; keys and values would be {}\n",
        size(exchange_bytes(r.request.model, chunk, cost)), size(ring_bytes(r.request.model, chunk, cost)));
  }
  if (r.plan.uniform_ttft_s > 0.0) {
    text += fmt::format("  chunks {}: a prompt of {} tokens alone takes {}; with the best equal ones, of {}, {}\n",
                        chunks_text(r.plan.chunks), r.request.job.prompt_tokens,
                        seconds_text(simulate_ttft(r.plan.pipeline, r.request.job.prompt_tokens)),
                        longest_chunk(r.plan.uniform_chunks), seconds_text(r.plan.uniform_ttft_s));
  } else {
    text += fmt::format("  chunks {}\n", chunks_text(r.plan.chunks));
  }
  return text;
}

}  // namespace

std::string chunks_text(const ChunkPlan& chunks) {
  std::vector<std::string> parts;
  for (std::size_t i = 0; i < chunks.size();) {
    std::size_t end = i;
    while (end < chunks.size() && chunks[end] == chunks[i]) ++end;
    parts.push_back(end - i == 1 ? fmt::format("{}", chunks[i]) : fmt::format("{} x {}", chunks[i], end - i));
    i = end;
  }
  return fmt::format("{}", fmt::join(parts, ", "));
}

std::string plan_text(const PlanReport& r) {
  std::string text = fmt::format("{}: {:.0f} million parameters, weights {}, keys and values {}\n", r.model,
                                 static_cast<double>(r.parameters) / 1e6, r.dtype, r.kv_dtype);
  if (r.replicas > 1) text += fmt::format("{} replicas of this pipeline:\n", r.replicas);
  if (r.request.shards > 1) {
    text += fmt::format("each stage {} context shards, of which the table has one:\n", r.request.shards);
  }
  text += fmt::format(
      "{} stage{}, {} microbatch{} in flight; {} sequence{} of {} positions ({} prompt tokens, {} new)\n\n",
      r.plan.stages.size(), r.plan.stages.size() == 1 ? "" : "s", r.plan.in_flight, r.plan.in_flight == 1 ? "" : "es",
      r.plan.slots, r.plan.slots == 1 ? "" : "s", r.positions(), r.request.job.prompt_tokens, r.request.job.new_tokens);
  text += stage_table(r) + bars(r) + prediction_text(r);
  if (r.has_budgets) {
    text += fmt::format("\nroom: {} sequence{} of up to {} positions each, or up to {} of {} positions\n", r.plan.slots,
                        r.plan.slots == 1 ? "" : "s", r.most_positions, r.most_sequences, r.positions());
  }
  if (!r.other_ways.empty()) {
    text += "\nother ways to use the devices:\n";
    for (const Alternative& way : r.other_ways) {
      text += fmt::format(
          "  {} pipeline{} of {} stage{}{}: {}\n", way.replicas, way.replicas == 1 ? "" : "s", way.stages,
          way.stages == 1 ? "" : "s", way.shards > 1 ? fmt::format(" of {} context shards", way.shards) : "",
          way.fits
              ? fmt::format("done after {}, first token after {}", seconds_text(way.total_s), seconds_text(way.ttft_s))
              : "does not fit");
    }
  }
  for (const std::string& note : r.notes) text += fmt::format("\n{}\n", note);
  return text;
}

}  // namespace stagecoach
