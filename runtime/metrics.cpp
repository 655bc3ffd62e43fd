#include "runtime/metrics.hpp"

#include <fmt/format.h>

#include "runtime/results.hpp"

namespace stagecoach {
namespace {

double seconds(std::int64_t ns) {
  return 1e-9 * static_cast<double>(ns);
}

std::string json_of(const Histogram& h) {
  if (h.count() == 0) return R"({"count": 0, "p50": null, "p90": null, "p99": null, "max": null})";
  return fmt::format(R"({{"count": {}, "p50": {:.6g}, "p90": {:.6g}, "p99": {:.6g}, "max": {:.6g}}})", h.count(),
                     h.quantile(0.5), h.quantile(0.9), h.quantile(0.99), h.max());
}

std::string json_of(const StageFigures& s) {
  const StageReport& r = s.report;
  const double busy = seconds(r.times.busy_ns);
  const double idle = seconds(r.times.idle_ns);
  return fmt::format(
      "{{\"rank\": {}, \"replica\": {}, \"stage\": {}, \"shard\": {}, \"host\": {}, \"device\": {}, "
      "\"busy_s\": {:.6f}, \"schedule_s\": {:.6f}, \"idle_s\": {:.6f}, \"bubble\": {:.4f}, \"weights_bytes\": {}, "
      "\"kv_bytes\": {}, \"peak_bytes\": {}, "
      "\"bytes_sent\": {}, \"shard_bytes_sent\": {}, \"microbatches\": {}, \"rows\": {}}}",
      s.rank, s.replica, s.stage, s.shard, json_string(s.host), json_string(s.device), busy,
      seconds(r.times.schedule_ns), idle, busy + idle > 0.0 ? idle / (busy + idle) : 0.0, r.weight_bytes, r.kv_bytes,
      r.peak_bytes, r.bytes_sent, r.shard_bytes_sent, r.microbatches, r.rows);
}

}  // namespace

void RunMeter::given(const Request& request) {
  const bool another_part = request.index == given_index_ && request.first_sample > given_sample_;
  given_index_ = request.index;
  given_sample_ = request.first_sample;
  if (!another_part) ++counts_.prompts;
  if (!another_part || request.score_from > 0) {
    counts_.prompt_tokens += static_cast<std::int64_t>(request.tokens.size());
  }
}

void RunMeter::taken(const Request& request, std::int64_t now_ns) {
  if (request.score_from == 0) waiting_.try_emplace(request.index, now_ns);
}

void RunMeter::token(const Scheduler::TokenEvent& event, std::int64_t now_ns) {
  if (const auto found = waiting_.find(event.request_index); found != waiting_.end()) {
    first_token_.add(seconds(now_ns - found->second));
    waiting_.erase(found);
  }
  const auto [latest, first] = latest_.try_emplace(key_of(event.request_index, event.sample), now_ns);
  if (!first) between_tokens_.add(seconds(now_ns - latest->second));
  latest->second = now_ns;
}

void RunMeter::finished(const Sample& sample) {
  ++counts_.samples;
  const auto tokens = static_cast<std::int64_t>(sample.tokens.size());
  counts_.generated_tokens += tokens;
  if (tokens == 0) counts_.scored_tokens += static_cast<std::int64_t>(sample.logprobs.size());
  latest_.erase(key_of(sample.index, sample.sample));
}

void RunMeter::merge(const RunMeter& other) {
  counts_.prompts += other.counts_.prompts;
  counts_.prompt_tokens += other.counts_.prompt_tokens;
  counts_.samples += other.counts_.samples;
  counts_.generated_tokens += other.counts_.generated_tokens;
  counts_.scored_tokens += other.counts_.scored_tokens;
  first_token_.merge(other.first_token_);
  between_tokens_.merge(other.between_tokens_);
}

void RunMeter::put(wire::Writer& out) const {
  for (const std::int64_t count :
       {counts_.prompts, counts_.prompt_tokens, counts_.samples, counts_.generated_tokens, counts_.scored_tokens}) {
    out.put(count);
  }
  first_token_.put(out);
  between_tokens_.put(out);
}

RunMeter RunMeter::read(wire::Reader& in) {
  RunMeter meter;
  RunCounts& counts = meter.counts_;
  for (std::int64_t* count :
       {&counts.prompts, &counts.prompt_tokens, &counts.samples, &counts.generated_tokens, &counts.scored_tokens}) {
    *count = in.i64();
  }
  meter.first_token_ = Histogram::read(in);
  meter.between_tokens_ = Histogram::read(in);
  return meter;
}

std::string metrics_json(const RunFigures& run, const RunMeter& meter, std::span<const StageFigures> stages) {
  const RunCounts& c = meter.counts();
  const auto tokens = static_cast<double>(c.generated_tokens + c.scored_tokens);
  std::string text = fmt::format(
      "{{\"command\": {}, \"model\": {}, \"dtype\": {}, \"kv_dtype\": {}, \"replicas\": {}, \"stages\": {}, "
      "\"context_shards\": {},\n"
      " \"prompts\": {}, \"prompt_tokens\": {}, \"samples\": {}, \"generated_tokens\": {}, \"scored_tokens\": {}, "
      "\"earlier_tokens\": {}, \"wall_s\": {:.6f}, \"tokens_per_s\": {:.6g},\n"
      " \"ttft_s\": {},\n \"itl_s\": {},\n \"ranks\": [",
      json_string(run.command), json_string(run.model), json_string(run.dtype), json_string(run.kv_dtype), run.replicas,
      run.stages, run.shards, c.prompts, c.prompt_tokens, c.samples, c.generated_tokens, c.scored_tokens,
      run.earlier_tokens, run.wall_s, run.wall_s > 0.0 ? tokens / run.wall_s : 0.0, json_of(meter.first_token()),
      json_of(meter.between_tokens()));
  for (std::size_t i = 0; i < stages.size(); ++i) text += (i == 0 ? "\n  " : ",\n  ") + json_of(stages[i]);
  return text + "]}\n";
}

}  // namespace stagecoach
