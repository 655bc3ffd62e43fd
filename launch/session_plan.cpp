// What a session decides before anything is loaded: the plan, the memory that each stage may take, and the numbers of
// sequences and KV pages.
#include <algorithm>
#include <cstring>

#include "launch/auto_plan.hpp"
#include "launch/places.hpp"
#include "launch/room.hpp"
#include "launch/session.hpp"
#include "partition/machine.hpp"

namespace stagecoach {
namespace {

constexpr std::int32_t kSequencesPerMicrobatch = 32;  // aimed at while memory allows
// From so many for each stage on, half as many microbatches as stages wait between them, so that one that takes longer
// holds nobody up.
constexpr std::int32_t kManySequences = 8;

}  // namespace

void Session::make_plan() {
  plan_.model = model_->config;
  const auto& listed = options_.run_file.stages;
  if (listed) check_stage_blocks(options_.run_file, model_->config);
  grid_ = settled_grid(options_, world_);
  plan_.stages = listed ? *listed : even_split(model_->config, grid_.stages);
  plan_.chunk_tokens = options_.chunk_tokens.value_or(kDefaultChunkTokens);
  plan_.chunks = options_.chunks;
  plan_.in_flight = options_.in_flight.value_or(plan_.stage_count());
  plan_.shards = grid_.shards;
  validate(plan_);
}

SchedulerLimits Session::scheduler_limits() const {
  SchedulerLimits limits;
  limits.n_positions = plan_.model.n_positions;
  limits.eos = plan_.model.eos_token_id;
  limits.pages = pages_;
  limits.slots = slots_;
  limits.chunk_tokens = plan_.chunk_tokens;
  limits.chunks = plan_.chunks;
  limits.in_flight = plan_.in_flight;
  limits.decode_split = decode_split_;
  limits.shards = grid_.shards;
  return limits;
}

// What the user lets this process's stages take: each stage's own, or what holds for all.
std::vector<std::optional<std::int64_t>> Session::local_budgets() const {
  std::vector<std::optional<std::int64_t>> budgets;
  for (const std::int32_t place : local_places()) {
    const std::optional<std::int64_t>& own = spec(place).memory_bytes;
    budgets.push_back(own ? own : options_.memory_per_rank);
  }
  return budgets;
}

// Most that the events of this process's stages may take, with a piece on its way to the file.
std::int64_t Session::trace_bytes() const {
  if (options_.trace_path.empty()) return 0;
  const auto stages = static_cast<std::int64_t>(local_places().size());
  return stages * TraceBuffer::kMostBytes + 8 * TraceBuffer::kPieceEvents * std::int64_t{sizeof(TraceEvent)};
}

// Chooses the numbers of sequences and KV pages.
void Session::find_fit(const WorkSize& work) {
  const std::vector<std::optional<std::int64_t>> budgets = local_budgets();
  const std::int64_t of_each = (work.sequences + grid_.replicas - 1) / grid_.replicas;
  if (!options_.in_flight && of_each >= std::int64_t{kManySequences} * grid_.stages) {
    plan_.in_flight = grid_.stages + grid_.stages / 2;
  }
  const std::vector<std::string> hosts = world_.hosts();
  if (!options_.in_flight && hosts.size() > 1) {
    decode_split_ = plan_.in_flight;
    plan_.in_flight += most_crossings(hosts, grid_);
  }
  rooms_ = find_rooms(
      world_, {devices_, budgets, threads_, trace_bytes() + (grid_.leads(world_.rank()) ? work.prompt_bytes : 0)});
  FitRequest request;
  request.plan = plan_;
  request.dtype = dtype_;
  request.kv_dtype = kv_dtype_;
  request.work = work;
  const std::int64_t most = std::int64_t{kSequencesPerMicrobatch} * plan_.in_flight;
  request.most_slots = static_cast<std::int32_t>(std::clamp<std::int64_t>(of_each, 1, most));
  request.chunks_may_shrink = !options_.chunk_tokens;
  request.rooms = rooms_;
  if (std::ranges::count(hosts, hosts.front()) < std::ssize(hosts)) request.hosts = hosts;
  request.loading_bytes = [this](BlockRange blocks, DType dtype, const MemoryLayout& layout) {
    return loading_bytes(*model_->weights, plan_.model, blocks, dtype, layout);
  };
  request.plan = plan_ = settle_open(request);
  world_.agree([&] {
    Fit found = fit(request);
    slots_ = found.slots;
    pages_ = found.pages;
    if (found.chunk_tokens < plan_.chunk_tokens) plan_.chunks.clear();
    plan_.chunk_tokens = found.chunk_tokens;
    needs_ = std::move(found.needs);
  });
}

// The partitioner's choices, of rank 0.
Plan Session::settle_open(const FitRequest& request) const {
  Plan plan = request.plan;
  if (plan.stage_count() == 1) return plan;
  world_.agree([&] {
    if (!leads()) return;
    OpenChoices open{!options_.run_file.stages, chunks_are_open_, std::nullopt};
    if (!options_.machine_path.empty()) open.machine = read_machine(options_.machine_path);
    plan = choose(request, open);
  });
  const std::vector<std::int32_t> mine = choices_of(plan);
  const std::vector<std::byte> bytes = world_.from_first(std::as_bytes(std::span(mine)));
  std::vector<std::int32_t> choices(bytes.size() / sizeof(std::int32_t));
  std::memcpy(choices.data(), bytes.data(), bytes.size());
  apply_choices(choices, plan);
  return plan;
}

}  // namespace stagecoach
