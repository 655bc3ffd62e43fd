#include "launch/profile_table.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <string_view>

namespace stagecoach {
namespace {

std::string_view name_of(Activation activation) {
  switch (activation) {
    case Activation::kNone:
      return "";
    case Activation::kGeluTanh:
      return " gelu tanh";
    case Activation::kGeluErf:
      return " gelu";
    case Activation::kRelu:
      return " relu";
    case Activation::kSilu:
      return " silu";
  }
  return "?";
}

std::string name_of(const OperationKind& kind) {
  switch (kind.operation) {
    case Operation::kSetRows:
      return "set rows";
    case Operation::kEmbed:
      return "embed";
    case Operation::kAttention:
      return "attention";
    case Operation::kCopyPage:
      return "copy page";
    case Operation::kLayerNorm:
      return "layer norm";
    case Operation::kLinear:
      return fmt::format("linear {} x {}{}", kind.in, kind.out, name_of(kind.activation));
    case Operation::kGather:
      return "gather";
    case Operation::kSummarizeLogits:
      return "summarize logits";
    case Operation::kDownload:
      return "download";
  }
  return "?";
}

// In units of 10^9 per second.
std::string giga(std::int64_t amount, double seconds) {
  if (amount == 0 || seconds <= 0.0) return "-";
  return fmt::format("{:.2f}", static_cast<double>(amount) / seconds * 1e-9);
}

std::string phase_table(PhaseProfile phase) {
  const double busy_s = phase.operations_s() + phase.between_operations_s;
  const auto percent = [busy_s](double seconds) { return busy_s > 0.0 ? 100.0 * seconds / busy_s : 0.0; };
  std::ranges::stable_sort(phase.operations, std::greater(), &OperationTotals::seconds);
  std::string table = fmt::format("  {:<30} {:>8} {:>10} {:>10} {:>8} {:>8} {:>9}\n", "operation", "calls", "ms/call",
                                  "total s", "share", "GB/s", "GFLOP/s");
  for (const OperationTotals& t : phase.operations) {
    table += fmt::format("  {:<30} {:>8} {:>10.4f} {:>10.4f} {:>6.1f} % {:>8} {:>9}\n", name_of(t.kind), t.calls,
                         1e3 * t.seconds / static_cast<double>(t.calls), t.seconds, percent(t.seconds),
                         giga(t.bytes_read, t.seconds), giga(t.flops, t.seconds));
  }
  table += fmt::format("  {:<30} {:>8} {:>10} {:>10.4f} {:>6.1f} %\n", "between operations", "", "",
                       phase.between_operations_s, percent(phase.between_operations_s));
  return table;
}

}  // namespace

std::string profile_table(const Profile& profile, std::int32_t stage, BlockRange blocks) {
  std::string text;
  for (const Phase phase : {Phase::kPrefill, Phase::kDecode}) {
    const PhaseProfile& p = profile[phase];
    if (p.microbatches == 0) continue;
    text +=
        fmt::format("\nstage {} (blocks {} to {}), {}: {} rows in {} microbatches\n", stage, blocks.first, blocks.last,
                    phase == Phase::kPrefill ? "prefill" : "decode (one row of each sequence)", p.rows, p.microbatches);
    text += phase_table(p);
    text +=
        fmt::format("  before microbatches (messages, waiting, picking tokens): {:.4f} s\n", p.before_microbatches_s);
  }
  return text;
}

}  // namespace stagecoach
