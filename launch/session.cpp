#include "launch/session.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>

#include "kernels/cuda/cuda_backend.hpp"
#include "launch/interrupt.hpp"
#include "launch/links.hpp"
#include "launch/log.hpp"
#include "launch/machine.hpp"
#include "launch/places.hpp"
#include "launch/same_everywhere.hpp"
#include "partition/plan_report.hpp"
#include "partition/wording.hpp"
#include "runtime/staged_transport.hpp"

namespace stagecoach {
namespace {

constexpr std::int32_t kBlocksInQueue = 64;  // of about a dozen operations each

}  // namespace

// One stage of this process. Members are destroyed in reverse: whatever holds buffers before the backend.
struct Session::Stage {
  void take(Links links) {
    mailbox = std::move(links.mailbox);
    transport = std::move(links.transport);
    shards.to = std::move(links.to_shards);
  }

  std::int32_t place = 0;
  std::unique_ptr<Backend> backend;
  const cuda::DeviceQueue* queue = nullptr;    // of `backend`, for NCCL
  const ProfilingBackend* profiler = nullptr;  // `backend`, when it is one
  std::unique_ptr<Mailbox> mailbox;
  std::unique_ptr<Mailbox> office;  // of a replica's leader, when there are several
  std::unique_ptr<Transport> transport;
  ShardLinks shards;
  std::unique_ptr<StageExecutor> executor;
  std::unique_ptr<TraceBuffer> trace;  // with --trace
  StageReport report;                  // after the run
};

Session::Session(const Options& options, const World& world) : options_(options), world_(world) {
  arrange_ranks(options_, world_);
  world_.agree([this] {
    // Leaders of pipelines look for stop strings.
    const std::int32_t of_replica = std::max(1, world_.size() / options_.replicas);
    const bool needs_tokens = world_.rank() % of_replica == 0;
    model_ =
        std::make_unique<Model>(open_model(options_.model, needs_tokens ? ModelParts::kAll : ModelParts::kNoTokenizer));
    make_plan();
    dtype_ = options_.dtype.value_or(model_->dtype);
    require_convertible(*model_, dtype_);
    const std::int32_t sharers = threads_are_stages() ? grid_.size() : world_.local_size();
    threads_ = options_.threads.value_or(default_threads(sharers));
  });
  require_same_model(world_, *model_);
  std::vector<DeviceWish> wishes;
  for (const std::int32_t place : local_places()) {
    const DeviceWish& own = spec(place).device;
    wishes.push_back(own == DeviceWish{} ? options_.device : own);
  }
  devices_ = choose_devices(world_, wishes, local_budgets());
  const bool any_cuda = world_.minimum(std::ranges::any_of(devices_, &StageDevice::cuda) ? 0 : 1) == 0;
  kv_dtype_ = options_.kv_dtype.value_or(any_cuda ? DType::kFloat16 : DType::kFloat32);
  if (any_cuda && !options_.chunk_tokens) plan_.chunk_tokens = kDefaultCudaChunkTokens;
  // How many rows a GPU needs at once to be busy only a measurement tells.
  chunks_are_open_ = !options_.chunk_tokens && (!any_cuda || !options_.machine_path.empty());
  use_nccl_ = choose_nccl(world_, options_.transport, grid_, devices_);
  world_.agree([&] {
    if (any_cuda && dtype_ == DType::kInt8) {
      throw UsageError("--dtype: int8 weights are for CPUs; give float16 or bfloat16, or --device cpu");
    }
    if (options_.map_weights) map_weights(any_cuda);
  });
}

void Session::map_weights(bool any_cuda) {
  if (any_cuda) throw UsageError("--map-weights: is for CPUs; leave it out, or give --device cpu");
  if (dtype_ != model_->dtype) {
    throw UsageError(
        fmt::format("--map-weights: {} has {} weights, which are used as they are; leave out --dtype {}, or convert "
                    "the model with it",
                    model_->name, name_of(model_->dtype), name_of(dtype_)));
  }
  if (!model_->weights->map()) {
    throw UsageError(
        fmt::format("--map-weights: {} is no model file with packed matrices; make one with stagecoach convert "
                    "--model {} --output FILE.h5",
                    model_->name, model_->name));
  }
}

// After a failure NCCL may still hold on to a device, and to let go of what stages have there could wait for it for
// ever: that is left to the end of the process, which comes next.
Session::~Session() {
  if (!failed_ || !use_nccl_) return;
  for (std::unique_ptr<Stage>& stage : stages_) static_cast<void>(stage.release());
}

std::vector<std::int32_t> Session::local_places() const {
  if (!threads_are_stages()) return {world_.rank()};
  std::vector<std::int32_t> all;
  for (std::int32_t place = 0; place < grid_.size(); ++place) all.push_back(place);
  return all;
}

std::vector<std::int32_t> Session::leaders() const {
  std::vector<std::int32_t> leaders;
  for (std::int32_t replica = 0; replica < grid_.replicas; ++replica) leaders.push_back(grid_.first(replica));
  return leaders;
}

const StageSpec& Session::spec(std::int32_t place) const {
  return plan_.stages[static_cast<std::size_t>(grid_.stage(place))];
}

// Who speaks: nothing when there is only one.
std::string Session::prefix(std::int32_t place) const {
  return grid_.size() > 1 ? world_.name_of(grid_, place) + ": " : "";
}

std::unique_ptr<Backend> Session::make_backend(const StageDevice& device, std::int32_t place) const {
  if (device.cuda) return make_cuda_backend({device.index, device.pool_bytes, options_.deterministic});
  CpuOptions cpu{threads_, simd_of(options_.simd)};
  const StageRoom& room = rooms_[static_cast<std::size_t>(place)];
  if (room.budget_bytes > 0) {
    cpu.budget_bytes = room.available_bytes - needs_[static_cast<std::size_t>(place)].process;
  }
  return make_cpu_backend(cpu);
}

void Session::make_stages() {
  const std::vector<std::int32_t> places = local_places();
  for (std::size_t i = 0; i < places.size(); ++i) {
    auto stage = std::make_unique<Stage>();
    stage->place = places[i];
    stage->backend = make_backend(devices_[i], stage->place);
    if (use_nccl_) stage->queue = &device_queue(*stage->backend);
    if (options_.check) stage->backend = make_checking_backend(std::move(stage->backend));
    if (profile_after_rows_) {
      auto profiler = std::make_unique<ProfilingBackend>(std::move(stage->backend), *profile_after_rows_);
      stage->profiler = profiler.get();
      stage->backend = std::move(profiler);
    }
    if (!options_.trace_path.empty()) stage->trace = std::make_unique<TraceBuffer>();
    stages_.push_back(std::move(stage));
  }
}

bool Session::prepare(const std::function<std::optional<WorkSize>()>& size) {
  std::optional<WorkSize> asked;
  // Rank 0 is about to make files: a signal to another rank must not make mpirun kill it from here on.
  if (!leads()) catch_interrupts();
  world_.agree([] {});
  world_.agree([&] {
    if (leads()) asked = size();
  });
  const std::vector<std::byte> first =
      world_.from_first(asked ? std::as_bytes(std::span(&*asked, 1)) : std::span<const std::byte>{});
  if (first.empty()) return false;
  WorkSize work;
  std::memcpy(&work, first.data(), sizeof work);
  catch_interrupts();

  find_fit(work);
  world_.agree([this] { make_stages(); });
  if (!threads_are_stages()) connect();
  world_.agree([this] { load_all(); });
  return true;
}

// Links between this process's stage and its neighbours in other processes.
void Session::connect() {
  Stage& stage = *stages_.front();
  LinkSetUp set_up;
  set_up.grid = grid_;
  set_up.timeout_s = options_.timeout_s;
  set_up.backend = stage.backend.get();
  set_up.device = &devices_.front();
  set_up.queue = stage.queue;
  // Comparing and measuring wait for the device between operations, and a queue takes about a thousand of them before
  // it lets the host wait.
  const std::int32_t blocks = spec(stage.place).blocks.count();
  set_up.waits_on_device = !options_.check && stage.profiler == nullptr && blocks <= kBlocksInQueue;
  stage.take(connect_stages(world_, set_up));
  if (grid_.replicas > 1) stage.office = world_.mpi()->mailbox(0);
}

void Session::catch_interrupts() const {
  stagecoach::catch_interrupts(world_.mpi() != nullptr);
}

void Session::load(Stage& stage) {
  const BlockRange blocks = spec(stage.place).blocks;
  StatusLine line(stage.place == 0 && !options_.quiet);
  StageWeights weights =
      load_stage(*stage.backend, *model_->weights, plan_.model, blocks, dtype_,
                 [this, &line](std::int64_t done, std::int64_t total) {
                   throw_if_interrupted();
                   world_.alive();
                   line.update(fmt::format("loading {} of {}", readable_bytes(done), readable_bytes(total)));
                 });
  const StageLimits limits{scheduler_limits().max_rows(), pages_, scheduler_limits().tables(), kv_dtype_};
  if (threads_are_stages()) {
    stage.take(connect_threads(*hub_, grid_, stage.place, *stage.backend));
    if (grid_.replicas > 1) stage.office = hub_->mailbox(stage.place);
  }
  stage.shards.place = {grid_.shard(stage.place), grid_.shards};
  stage.executor =
      std::make_unique<StageExecutor>(*stage.backend, plan_.model, blocks, std::move(weights), limits, &stage.shards);
}

// Stages of one process load side by side: packing is bound by one core, reading by the disk.
void Session::load_all() {
  if (threads_are_stages()) hub_ = std::make_unique<LoopbackHub>(LoopbackMode::kRendezvous);
  std::vector<std::exception_ptr> failures(stages_.size());
  if (stages_.size() == 1) {  // here, where signs of life can be given
    load(*stages_.front());
  } else {
    std::vector<std::jthread> threads;
    for (std::size_t i = 0; i < stages_.size(); ++i) {
      threads.emplace_back([this, i, &failures] {
        try {
          load(*stages_[i]);
        } catch (...) {
          failures[i] = std::current_exception();
        }
      });
    }
  }
  for (const std::exception_ptr& failure : failures) {
    if (failure) std::rethrow_exception(failure);
  }
  if (leads() && plan_.stage_count() > 1) {
    log_verbose(fmt::format("prompts travel in chunks of {}",
                            chunks_text(plan_.chunks.empty() ? ChunkPlan{plan_.chunk_tokens} : plan_.chunks)));
  }
  for (const auto& stage : stages_) {
    const BlockRange blocks = spec(stage->place).blocks;
    log_verbose(fmt::format("{}blocks {} to {}, {} of weights ({}), {} KV pages ({}), {} threads, {}",
                            prefix(stage->place), blocks.first, blocks.last,
                            readable_bytes(stage->executor->weight_bytes()),
                            fmt::format("{}{}", name_of(dtype_), options_.map_weights ? ", mapped" : ""), pages_,
                            readable_bytes(stage->executor->kv_bytes()), threads_, stage->backend->name()));
    const auto place = static_cast<std::size_t>(stage->place);
    log_verbose(fmt::format("{}planned memory: {}, of {}", prefix(stage->place), describe(needs_[place]),
                            readable_bytes(rooms_[place].available_bytes)));
  }
}

StageContext Session::context(Stage& stage) const {
  StageContext context;
  context.stage = grid_.stage(stage.place);
  context.stages = plan_.stage_count();
  context.shards = stage.shards.place;
  context.in_flight = plan_.in_flight;
  context.timeout_s = options_.timeout_s;
  context.backend = stage.backend.get();
  context.executor = stage.executor.get();
  context.mailbox = stage.mailbox.get();
  context.transport = stage.transport.get();
  context.trace = stage.trace.get();
  context.name = [this, first = grid_.first(grid_.replica(stage.place))](std::int32_t peer) {
    return world_.name_of(grid_, first + peer);
  };
  context.check = [follows = !leads(), drains = drains_] {
    const std::optional<Interrupt> noted = interrupt();
    // What every rank was told is for rank 0, which ends the job with one message.
    if (!noted || (follows && noted->from_launcher) || (drains && noted->leaves_time())) return;
    throw_interrupted(*noted);
  };
  return context;
}

// Of a stage that is not the first of all.
void Session::run_stage(Stage& stage, const Lead& help) const {
  if (!grid_.leads(stage.place)) {
    stage.report = run_follower(context(stage));
    return;
  }
  Leader leader(context(stage));
  help(leader, office(stage));
  stage.report = leader.stop().front();
}

OfficeOptions Session::office(const Stage& stage) const {
  return {stage.office.get(), options_.timeout_s, [this](std::int32_t place) { return world_.name_of(grid_, place); }};
}

std::vector<StageReport> Session::run(const Lead& lead, const Lead& help) {
  std::mutex mutex;
  std::optional<RunFailed> failure;  // the first; others are its echo
  const auto guarded = [&](std::int32_t place, const std::function<void()>& body) {
    try {
      body();
    } catch (...) {
      const Outcome outcome = outcome_of_current_exception();
      const std::scoped_lock lock(mutex);
      const bool needs_prefix = outcome.status != 75 || (place != 0 && !threads_are_stages());
      if (!failure) {
        failure = RunFailed{outcome.status, (needs_prefix ? prefix(place) : "") + outcome.message, outcome.of_peer};
      }
      if (hub_) hub_->fail(outcome.message);
    }
  };
  std::vector<StageReport> reports;
  {
    std::vector<std::jthread> others;
    for (const auto& stage : stages_) {
      if (stage->place == 0) continue;
      const auto body = [&, this, s = stage.get()] { guarded(s->place, [&] { run_stage(*s, help); }); };
      if (threads_are_stages()) {
        others.emplace_back(body);
      } else {
        body();
      }
    }
    if (leads()) {
      guarded(0, [&] {
        Leader leader(context(*stages_.front()));
        lead(leader, office(*stages_.front()));
        reports = leader.stop();
        stages_.front()->report = reports.front();
      });
    }
  }
  failed_ = failure.has_value();
  if (failure) throw *failure;
  log_peak();
  return reports;
}

// What was planned counts host memory only where the stages compute there.
void Session::log_peak() const {
  const std::int64_t peak = process_memory().peak_resident_bytes;
  std::string text = fmt::format("{}peak resident memory {} ({} bytes)", world_.size() > 1 ? prefix(world_.rank()) : "",
                                 readable_bytes(peak), peak);
  if (std::ranges::none_of(devices_, &StageDevice::cuda)) {
    std::int64_t planned = 0;
    for (const std::int32_t place : local_places()) planned += needs_[static_cast<std::size_t>(place)].total();
    text += fmt::format(", planned {} ({} bytes)", readable_bytes(planned), planned);
  }
  log_verbose(text);
}

std::vector<Session::StageProfile> Session::profiles() const {
  std::vector<StageProfile> profiles;
  for (const auto& stage : stages_) {
    if (stage->profiler != nullptr) profiles.push_back({grid_.stage(stage->place), stage->profiler->profile()});
  }
  return profiles;
}

std::vector<Session::StageRecord> Session::records() const {
  std::vector<StageRecord> records;
  for (const auto& stage : stages_) {
    records.push_back({stage->place, stage->backend->name(), stage->report, stage->trace.get()});
  }
  return records;
}

}  // namespace stagecoach
