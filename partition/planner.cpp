#include "partition/planner.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "partition/plan.hpp"

namespace stagecoach {
namespace {

constexpr std::int32_t kLeastChunk = 16;    // shorter ones only where they were asked for
constexpr std::int64_t kSearchTokens = 16;  // new tokens that are simulated to compare cuts
constexpr double kWorthAStage = 1.01;       // a stage more must bring this much
constexpr double kWorthAList = 1.002;       // chunks of several lengths must bring this much
constexpr std::int64_t kSequencesPerMicrobatch = 32;

// Of each shard, for one sequence.
std::int64_t pages_for(std::int64_t positions, const PlanRequest& r) {
  const DeviceLayout& layout = r.devices.front().layout;
  return dealt_pages(largest_part(positions, layout.page_positions), 0, r.shards, layout.segment_pages);
}

ShardCost shard_cost(const PlanRequest& r, const PlannerDevice& device) {
  return {r.shards, device.link, device.layout.page_positions * device.layout.segment_pages,
          device.layout.activation_bytes};
}

std::int64_t positions_of(const PlanRequest& r) {
  return std::min<std::int64_t>(r.model.n_positions, r.job.prompt_tokens + r.job.new_tokens - 1);
}

// Cuts for one number of stages, and what comes of them.
class Search {
 public:
  Search(const PlanRequest& request, std::int32_t stages, std::int32_t chunk)
      : r_(request), stages_(stages), chunk_(chunk), in_flight_(request.in_flight.value_or(stages)) {
    slots_ =
        static_cast<std::int32_t>(std::clamp<std::int64_t>(r_.job.sequences, 1, kSequencesPerMicrobatch * in_flight_));
    pages_ = slots_ * pages_for(positions_of(r_), r_);
  }

  // The fastest cut that fits, or the one that the fewest stages are too small for.
  PipelinePlan best() const {
    PipelinePlan best;
    for (const Balance& candidate : candidates()) {
      PipelinePlan plan = plan_of(candidate);
      if (best.stages.empty() || better(plan, best)) best = std::move(plan);
    }
    return best;
  }

 private:
  static bool better(const PipelinePlan& a, const PipelinePlan& b) {
    if (a.fits() != b.fits()) return a.fits();
    if (!a.fits()) return lacking(a) < lacking(b);
    return a.prediction.total_s < b.prediction.total_s;
  }
  static std::int64_t lacking(const PipelinePlan& plan) {
    std::int64_t most = 0;
    for (const PlannedStage& s : plan.stages) {
      if (s.budget_bytes) most = std::max(most, s.needed_bytes() - *s.budget_bytes);
    }
    return most;
  }

  const PlannerDevice& device(std::int32_t d) const { return r_.devices[static_cast<std::size_t>(d)]; }

  StageBytes bytes(std::int32_t d, BlockRange blocks) const {
    const StageWork work{chunk_ + slots_, static_cast<std::int32_t>(pages_), 2 * slots_, in_flight_, stages_,
                         r_.shards};
    return stage_bytes(r_.model, blocks, device(d).layout, work);
  }
  bool fits(std::int32_t d, BlockRange blocks) const {
    return !device(d).budget_bytes || bytes(d, blocks).device() + device(d).process_bytes <= *device(d).budget_bytes;
  }

  MicrobatchWork middle_chunk() const {
    MicrobatchWork work = prompt_chunk(r_.job.prompt_tokens / 2, std::min<std::int64_t>(chunk_, r_.job.prompt_tokens));
    if (r_.job.scored) work.logits_rows = work.rows();
    return work;
  }
  MicrobatchWork middle_step() const {
    return decode_step((slots_ + in_flight_ - 1) / in_flight_, r_.job.prompt_tokens + r_.job.new_tokens / 2);
  }

  std::vector<Balance> candidates() const {
    if (r_.cut) return {in_order(*r_.cut)};
    std::vector<Balance> found;
    const MicrobatchWork chunk = middle_chunk();
    const MicrobatchWork step = middle_step();
    const double chunks =
        static_cast<double>(r_.job.sequences * r_.job.prompt_tokens) / static_cast<double>(chunk.rows());
    const double steps =
        static_cast<double>(r_.job.sequences * (r_.job.new_tokens - 1)) / static_cast<double>(step.rows());
    BalanceProblem problem;
    problem.blocks = r_.model.n_layer;
    problem.devices = static_cast<std::int32_t>(r_.devices.size());
    problem.stages = stages_;
    problem.fits = [this](std::int32_t d, BlockRange blocks) { return fits(d, blocks); };
    for (const auto& [a, b] : {std::pair(chunks, steps), std::pair(1.0, 0.0), std::pair(0.0, 1.0)}) {
      problem.seconds = [&, a = a, b = b](std::int32_t d, BlockRange blocks) {
        const ShardCost shards = shard_cost(r_, device(d));
        return a * stage_seconds(r_.model, blocks, device(d).speed, chunk, shards) +
               b * stage_seconds(r_.model, blocks, device(d).speed, step, shards);
      };
      if (std::optional<Balance> cut = balance(problem)) found.push_back(*std::move(cut));
    }
    // Where only the slowest stage is made faster, the sum of all may suffer; so what others do takes part.
    std::vector<double> even(static_cast<std::size_t>(stages_), 1.0);
    std::vector<double> memory = even;
    for (std::int32_t s = 0; s < stages_; ++s) {
      if (device(s).budget_bytes) memory[static_cast<std::size_t>(s)] = static_cast<double>(*device(s).budget_bytes);
    }
    found.push_back(in_order(proportional_cut(r_.model.n_layer, even)));
    found.push_back(in_order(proportional_cut(r_.model.n_layer, memory)));
    return found;
  }

  static Balance in_order(const std::vector<BlockRange>& cut) {
    Balance result{cut, {}, 0.0};
    for (std::size_t s = 0; s < cut.size(); ++s) result.devices.push_back(static_cast<std::int32_t>(s));
    return result;
  }

  PipelinePlan plan_of(const Balance& cut) const {
    PipelinePlan plan;
    plan.in_flight = in_flight_;
    plan.slots = slots_;
    plan.pages = pages_;
    plan.chunks = r_.chunks.value_or(ChunkPlan{chunk_});
    plan.pipeline = {r_.model, {}, plan.chunks, in_flight_, slots_, r_.hold_decode};
    for (std::size_t s = 0; s < cut.stages.size(); ++s) {
      const std::int32_t d = cut.devices[s];
      PlannedStage stage;
      stage.blocks = cut.stages[s];
      stage.device = d;
      stage.bytes = bytes(d, stage.blocks);
      stage.budget_bytes = device(d).budget_bytes;
      stage.process_bytes = device(d).process_bytes;
      plan.stages.push_back(stage);
      plan.pipeline.stages.push_back({stage.blocks, device(d).speed, device(d).link, shard_cost(r_, device(d))});
    }
    JobShape sample = r_.job;
    sample.new_tokens = std::min(sample.new_tokens, kSearchTokens);
    plan.prediction = simulate(plan.pipeline, sample);
    if (sample.new_tokens > 1) {  // the steps that were left out are like those that were not
      const double decode_s = plan.prediction.total_s - plan.prediction.all_prefilled_s;
      plan.prediction.total_s += decode_s * static_cast<double>(r_.job.new_tokens - sample.new_tokens) /
                                 static_cast<double>(sample.new_tokens - 1);
    }
    return plan;
  }

  const PlanRequest& r_;
  std::int32_t stages_;
  std::int32_t chunk_;
  std::int32_t in_flight_;
  std::int32_t slots_ = 1;
  std::int64_t pages_ = 0;
};

// With chunks as long as memory allows.
PipelinePlan plan_with(const PlanRequest& request, std::int32_t stages) {
  if (request.chunks) return Search(request, stages, longest_chunk(*request.chunks)).best();
  PipelinePlan plan;
  for (std::int32_t chunk = request.most_chunk;; chunk /= 2) {
    plan = Search(request, stages, chunk).best();
    if (plan.fits() || chunk / 2 < kLeastChunk) return plan;
  }
}

ChunkProblem chunk_problem(const PlanRequest& request, const PipelinePlan& plan, std::int32_t most) {
  ChunkProblem problem;
  problem.prompt_tokens = request.job.prompt_tokens;
  problem.most = most;
  problem.unit = std::min(chunk_unit(problem.prompt_tokens), most);
  problem.stages = static_cast<std::int32_t>(plan.stages.size());
  problem.seconds = [&plan](std::int64_t first, std::int64_t rows) {
    double slowest = 0.0;
    for (const SimulatedStage& s : plan.pipeline.stages) {
      slowest =
          std::max(slowest, stage_seconds(plan.pipeline.model, s.blocks, s.speed, prompt_chunk(first, rows), s.shards));
    }
    return slowest;
  };
  return problem;
}

// The plan's uniform chunks are its upper bound: planned ones are never longer, so that what fits still fits.
void plan_the_chunks(const PlanRequest& request, PipelinePlan& plan) {
  const ChunkProblem problem = chunk_problem(request, plan, longest_chunk(plan.chunks));
  const auto ttft = [&](const ChunkPlan& chunks) {
    plan.pipeline.chunks = chunks;
    return simulate_ttft(plan.pipeline, request.job.prompt_tokens);
  };
  plan.uniform_chunks = best_uniform_chunks(problem).chunks;
  plan.uniform_ttft_s = ttft(plan.uniform_chunks);
  const ChunkPlan planned = plan_chunks(problem).chunks;
  plan.chunks = ttft(planned) * kWorthAList < plan.uniform_ttft_s ? planned : plan.uniform_chunks;
  // The last length is repeated, and the prompt's end cuts short what it meets.
  const auto before_last = [&] { return plan.chunks[plan.chunks.size() - 2]; };
  if (plan.chunks.size() > 1 && plan.chunks.back() < before_last()) plan.chunks.pop_back();
  while (plan.chunks.size() > 1 && plan.chunks.back() == before_last()) plan.chunks.pop_back();
  plan.pipeline.chunks = plan.chunks;
}

void finish(const PlanRequest& request, PipelinePlan& plan) {
  if (!request.chunks) plan_the_chunks(request, plan);
  plan.prediction = simulate(plan.pipeline, request.job);
  const std::vector<StageBytes> bytes = plan_bytes(request, plan, plan.pages, plan.slots);
  const std::int64_t prompt = request.job.prompt_tokens;
  for (std::size_t s = 0; s < plan.stages.size(); ++s) {
    PlannedStage& stage = plan.stages[s];
    stage.bytes = bytes[s];
    const auto& [blocks, speed, link, shards] = plan.pipeline.stages[s];
    const std::int64_t rows = std::min<std::int64_t>(prompt, longest_chunk(plan.chunks));
    stage.prompt_s = stage_seconds(request.model, blocks, speed, prompt_chunk(prompt - rows, rows), shards);
    stage.decode_s = stage_seconds(
        request.model, blocks, speed,
        decode_step((plan.slots + plan.in_flight - 1) / plan.in_flight, prompt + request.job.new_tokens - 1), shards);
  }
}

// The cut, with chunks of equal lengths.
PipelinePlan choose(const PlanRequest& request) {
  const auto devices = static_cast<std::int32_t>(request.devices.size());
  const std::int32_t most = std::min(devices, request.model.n_layer);
  if (request.cut || request.stages) {
    const std::int32_t stages = request.cut ? static_cast<std::int32_t>(request.cut->size()) : *request.stages;
    if (stages < 1 || stages > request.model.n_layer) even_split(request.model, stages);  // throws
    if (stages > devices) throw PlanError(fmt::format("{} stages but {} devices", stages, devices));
    return plan_with(request, stages);
  }
  PipelinePlan best;
  for (std::int32_t stages = 1; stages <= most; ++stages) {
    PipelinePlan plan = plan_with(request, stages);
    const bool first = best.stages.empty() || (plan.fits() && !best.fits());
    const bool faster = plan.fits() && plan.prediction.total_s * kWorthAStage < best.prediction.total_s;
    if (first || faster || (!plan.fits() && !best.fits())) best = std::move(plan);
  }
  return best;
}

bool all_fit(const PlanRequest& request, const PipelinePlan& plan, std::int64_t positions, std::int64_t sequences) {
  const std::int64_t pages = sequences * pages_for(positions, request);
  if (pages > std::numeric_limits<std::int32_t>::max()) return false;
  const std::vector<StageBytes> bytes = plan_bytes(request, plan, pages, sequences);
  for (std::size_t s = 0; s < bytes.size(); ++s) {
    const PlannedStage& stage = plan.stages[s];
    if (stage.budget_bytes && bytes[s].device() + stage.process_bytes > *stage.budget_bytes) return false;
  }
  return true;
}

}  // namespace

bool PipelinePlan::fits() const {
  return std::ranges::all_of(stages, [](const PlannedStage& s) { return s.fits(); });
}

PipelinePlan make_plan(const PlanRequest& request) {
  PipelinePlan plan = choose(request);
  finish(request, plan);
  return plan;
}

bool can_fit(const PlanRequest& request) {
  return choose(request).fits();
}

std::vector<Alternative> alternatives(const PlanRequest& request) {
  std::vector<Alternative> found;
  const auto devices = static_cast<std::int32_t>(request.devices.size());
  const auto add = [&](std::int32_t replicas, std::int32_t shards) {
    PlanRequest part = request;
    part.cut.reset();
    part.shards = shards;
    part.stages = devices / replicas / shards;
    part.devices.resize(static_cast<std::size_t>(*part.stages));
    part.job.sequences = (request.job.sequences + replicas - 1) / replicas;
    if (*part.stages > request.model.n_layer) return;
    const PipelinePlan plan = make_plan(part);
    found.push_back({*part.stages, replicas, shards, plan.fits(), plan.prediction.total_s, plan.prediction.ttft_s});
  };
  for (std::int32_t replicas = 1; replicas <= devices; ++replicas) {
    if (devices % replicas == 0 && replicas <= request.job.sequences) add(replicas, 1);
  }
  // Shards are for prompts with more than one segment each.
  const DeviceLayout& layout = request.devices.front().layout;
  const std::int64_t segment = layout.page_positions * layout.segment_pages;
  for (std::int32_t shards = 2; shards <= devices && request.job.prompt_tokens >= segment * shards; ++shards) {
    if (devices % shards == 0) add(1, shards);
  }
  return found;
}

std::int64_t most_positions(const PlanRequest& request, const PipelinePlan& plan, std::int64_t sequences) {
  return largest_that_fits(1, request.model.n_positions,
                           [&](std::int64_t n) { return all_fit(request, plan, n, sequences); });
}

std::int64_t most_sequences(const PlanRequest& request, const PipelinePlan& plan, std::int64_t positions) {
  return largest_that_fits(1, kSequencesPerMicrobatch * plan.in_flight,
                           [&](std::int64_t n) { return all_fit(request, plan, positions, n); });
}

std::vector<StageBytes> plan_bytes(const PlanRequest& request, const PipelinePlan& plan, std::int64_t pages,
                                   std::int64_t slots) {
  std::vector<StageBytes> bytes;
  const auto sequences = static_cast<std::int32_t>(slots);
  const StageWork work{longest_chunk(plan.chunks) + sequences,
                       static_cast<std::int32_t>(pages),
                       2 * sequences,
                       plan.in_flight,
                       static_cast<std::int32_t>(plan.stages.size()),
                       request.shards};
  for (const PlannedStage& stage : plan.stages) {
    bytes.push_back(
        stage_bytes(request.model, stage.blocks, request.devices[static_cast<std::size_t>(stage.device)].layout, work));
  }
  return bytes;
}

}  // namespace stagecoach
