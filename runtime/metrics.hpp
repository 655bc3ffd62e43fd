// What a run did in figures: counts and latencies as they come on stage 0, and the JSON of them with every stage's.
//
// RunMeter knows no clock: whoever calls it says when. Latencies take bounded memory however many tokens there are;
// besides them it remembers one time for each prompt and sample that is under way.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "runtime/histogram.hpp"
#include "runtime/pipeline.hpp"

namespace stagecoach {

struct RunCounts {
  std::int64_t prompts = 0;        // that anything was computed of; of `score`, texts
  std::int64_t prompt_tokens = 0;  // of these; of `score`, of all their windows
  std::int64_t samples = 0;        // finished
  std::int64_t generated_tokens = 0;
  std::int64_t scored_tokens = 0;
};

class RunMeter {
 public:
  // Work that is going to be done: requests in input order, those of one prompt one after the other.
  void given(const Request& request);
  // A pipeline took a request, a sample has another token, a sample is finished.
  void taken(const Request& request, std::int64_t now_ns);
  void token(const Scheduler::TokenEvent& event, std::int64_t now_ns);
  void finished(const Sample& sample);

  // What another one counted, of other samples.
  void merge(const RunMeter& other);
  void put(wire::Writer& out) const;
  static RunMeter read(wire::Reader& in);  // throws WireError

  const RunCounts& counts() const { return counts_; }
  // From `taken` to a prompt's first token in a pipeline, and from each of a sample's tokens to the next.
  const Histogram& first_token() const { return first_token_; }
  const Histogram& between_tokens() const { return between_tokens_; }

 private:
  static std::uint64_t key_of(std::int64_t index, std::int32_t sample) {
    return (static_cast<std::uint64_t>(index) << 20) ^ static_cast<std::uint64_t>(sample);
  }

  RunCounts counts_;
  std::int64_t given_index_ = -1;  // of the request given last, and its first sample
  std::int32_t given_sample_ = 0;
  Histogram first_token_, between_tokens_;
  std::unordered_map<std::int64_t, std::int64_t> waiting_;  // index of the prompt -> when it was taken
  std::unordered_map<std::uint64_t, std::int64_t> latest_;  // sample -> when its latest token came
};

// One stage of one rank.
struct StageFigures {
  std::int32_t rank = 0;
  std::int32_t replica = 0;
  std::int32_t stage = 0;
  std::int32_t shard = 0;
  std::string host;
  std::string device;
  StageReport report;
};

struct RunFigures {
  std::string command, model, dtype, kv_dtype;
  std::int32_t replicas = 1;
  std::int32_t stages = 1;          // of each
  std::int32_t shards = 1;          // of each of these
  double wall_s = 0.0;              // of the pipeline and the writing of results, without loading
  std::int64_t earlier_tokens = 0;  // of results that an earlier run of the job had finished
};

// One object, with a line end:
//   {"command","model","dtype","kv_dtype","replicas","stages","context_shards",
//    "prompts","prompt_tokens","samples","generated_tokens","scored_tokens","earlier_tokens","wall_s","tokens_per_s",
//    "ttft_s": {"count","p50","p90","p99","max"}, "itl_s": {...},
//    "ranks":
//    [{"rank","replica","stage","shard","host","device","busy_s","schedule_s","idle_s","bubble","weights_bytes",
//      "kv_bytes","peak_bytes","bytes_sent","shard_bytes_sent","microbatches","rows"}, ...]}
// tokens_per_s counts generated and scored tokens; percentiles of nothing are null; bubble is idle over busy and idle.
std::string metrics_json(const RunFigures& run, const RunMeter& meter, std::span<const StageFigures> stages);

}  // namespace stagecoach
