#include "launch/auto_plan.hpp"

#include <algorithm>
#include <memory>

#include "launch/device_speeds.hpp"
#include "launch/world.hpp"
#include "partition/planner.hpp"
#include "runtime/device_layout.hpp"

namespace stagecoach {
namespace {

class Chooser {
 public:
  Chooser(const FitRequest& request, const OpenChoices& open) : r_(request), open_(open) {
    for (const StageRoom& room : r_.rooms) layouts_.push_back(layout_of(room));
  }

  Plan choose() const {
    Plan plan = r_.plan;
    if (open_.blocks) plan = with_blocks();
    if (open_.chunks) choose_chunks(plan);
    return plan;
  }

 private:
  // The fastest, the one that looks at memory first, or the even one that is there: the first that fits.
  Plan with_blocks() const {
    for (const bool tight : {false, true}) {
      Plan plan = r_.plan;
      const PipelinePlan planned = make_plan(request(plan, tight));
      for (std::size_t s = 0; s < planned.stages.size(); ++s) plan.stages[s].blocks = planned.stages[s].blocks;
      if (fits(plan)) return plan;
    }
    return r_.plan;
  }

  // One prompt alone should give its first token soon; of many, all should be done soon.
  void choose_chunks(Plan& plan) const {
    PlanRequest whole = request(plan, false);
    whole.cut.emplace();
    for (const StageSpec& stage : plan.stages) whole.cut->push_back(stage.blocks);
    PlanRequest planned = whole;
    planned.chunks.reset();
    const PipelinePlan best = make_plan(planned);
    const auto goal = [&](const PipelinePlan& p) {
      return r_.work.sequences == 1 ? p.prediction.ttft_s : p.prediction.total_s;
    };
    if (goal(best) >= goal(make_plan(whole))) return;
    plan.chunks = best.chunks;
    plan.chunk_tokens = longest_chunk(best.chunks);
  }

  // `tight`: one sequence at a time, within what each rank has.
  PlanRequest request(const Plan& plan, bool tight) const {
    PlanRequest request;
    request.model = plan.model;
    request.stages = plan.stage_count();
    request.shards = plan.shards;
    request.chunks = plan.chunks.empty() ? ChunkPlan{plan.chunk_tokens} : plan.chunks;
    request.most_chunk = plan.chunk_tokens;
    request.in_flight = plan.in_flight;
    const std::int64_t count = std::max<std::int64_t>(1, r_.work.sequences);
    request.job.sequences = tight ? 1 : std::clamp<std::int64_t>(r_.work.sequences, 1, r_.most_slots);
    request.job.prompt_tokens = std::clamp<std::int64_t>(r_.work.prompt_tokens / count, 1, plan.model.n_positions);
    request.job.new_tokens = std::max<std::int64_t>(1, r_.work.scored ? 1 : r_.work.new_tokens / count);
    request.job.scored = r_.work.scored;
    for (std::size_t s = 0; s < plan.stages.size(); ++s) {
      const std::size_t place = tightest(s, plan);
      const StageRoom& room = r_.rooms[place];
      PlannerDevice device;
      device.layout = device_layout(*layouts_[place], plan.model, r_.dtype, r_.kv_dtype);
      device.speed = device_speed(open_.machine, static_cast<std::int32_t>(s), room.cuda, r_.dtype, r_.kv_dtype);
      device.link = link_speed(open_.machine);
      if (tight) device.budget_bytes = room.available_bytes / stages_of_pot(room.pot);
      device.process_bytes = room.process_bytes;
      request.devices.push_back(std::move(device));
    }
    return request;
  }

  // Of the places of stage `s`, which have the same blocks, the one with the least room.
  std::size_t tightest(std::size_t s, const Plan& plan) const {
    const Grid grid = plan.grid(r_.rooms.size());
    std::size_t best = s * static_cast<std::size_t>(plan.shards);
    for (std::size_t place = 0; place < r_.rooms.size(); ++place) {
      if (grid.stage(static_cast<std::int32_t>(place)) != static_cast<std::int32_t>(s)) continue;
      if (r_.rooms[place].available_bytes < r_.rooms[best].available_bytes) best = place;
    }
    return best;
  }

  std::int64_t stages_of_pot(std::int32_t pot) const { return std::ranges::count(r_.rooms, pot, &StageRoom::pot); }

  bool fits(const Plan& plan) const {
    FitRequest other = r_;
    other.plan = plan;
    try {
      fit(other);
      return true;
    } catch (const FitError&) {
      return false;
    }
  }

  const FitRequest& r_;
  const OpenChoices& open_;
  std::vector<std::unique_ptr<MemoryLayout>> layouts_;
};

}  // namespace

std::vector<std::int32_t> choices_of(const Plan& plan) {
  std::vector<std::int32_t> choices{plan.chunk_tokens};
  for (const StageSpec& stage : plan.stages) choices.push_back(stage.blocks.last);
  choices.insert(choices.end(), plan.chunks.begin(), plan.chunks.end());
  return choices;
}

void apply_choices(std::span<const std::int32_t> choices, Plan& plan) {
  plan.chunk_tokens = choices[0];
  std::int32_t first = 0;
  for (std::size_t s = 0; s < plan.stages.size(); ++s) {
    plan.stages[s].blocks = {first, choices[1 + s]};
    first = choices[1 + s] + 1;
  }
  const auto chunks = choices.subspan(1 + plan.stages.size());
  plan.chunks.assign(chunks.begin(), chunks.end());
}

Plan choose(const FitRequest& request, const OpenChoices& open) {
  return Chooser(request, open).choose();
}

}  // namespace stagecoach
