// stagecoach plan: from the model's header and the options of a run to who runs what, without devices or MPI.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <memory>

#include "kernels/memory_layout.hpp"
#include "launch/commands.hpp"
#include "launch/device_speeds.hpp"
#include "launch/devices.hpp"
#include "launch/log.hpp"
#include "launch/machine.hpp"
#include "launch/plan.hpp"
#include "launch/plan_advice.hpp"
#include "launch/room.hpp"
#include "partition/plan_report.hpp"
#include "runtime/device_layout.hpp"
#include "runtime/output_file.hpp"
#include "runtime/weight_source.hpp"

namespace stagecoach {
namespace {

constexpr std::int64_t kDefaultNewTokens = 64;
constexpr std::int64_t kUnlimitedPool = std::int64_t{1} << 50;
constexpr std::size_t kTimelineEntries = 20000;
constexpr std::int32_t kMostDevices = 4096;
// What MPI takes once it is started, which it is not here: 20 to 35 MiB with Open MPI 4.1 on one host.
constexpr std::int64_t kMpiBytes = 32 << 20;

// What dtypes and devices are planned with.
struct Kinds {
  DType dtype = DType::kFloat32;
  DType kv_dtype = DType::kFloat32;
};

class Planner {
 public:
  explicit Planner(const Options& options) : o_(options), model_(open_model(options.model)) {
    if (!o_.machine_path.empty()) machine_ = read_machine(o_.machine_path);
    if (o_.run_file.stages) check_stage_blocks(o_.run_file, model_.config);
    count_devices();
    kinds_.dtype = o_.dtype.value_or(model_.dtype);
    require_convertible(model_, kinds_.dtype);
    kinds_.kv_dtype = o_.kv_dtype.value_or(is_cuda(0) ? DType::kFloat16 : DType::kFloat32);
    if (is_cuda(0) && kinds_.dtype == DType::kInt8) {
      throw UsageError("--dtype: int8 weights are for CPUs; give float16 or bfloat16, or --device cpu");
    }
  }

  PlanReport report() {
    PlanReport report;
    report.model = o_.model;
    report.dtype = name_of(kinds_.dtype);
    report.kv_dtype = name_of(kinds_.kv_dtype);
    report.parameters = parameter_count(model_.config);
    report.request = request(kinds_);
    report.plan = make_plan(report.request);
    report.machine_path = o_.machine_path;
    report.replicas = o_.replicas;
    report.measured = machine_.has_value();
    for (const PlannedStage& stage : report.plan.stages) {
      report.device_names.push_back(device_name(stage.device));
      if (o_.run_file.stages)
        report.hosts.push_back((*o_.run_file.stages)[static_cast<std::size_t>(stage.device)].host);
      report.has_budgets = report.has_budgets || stage.budget_bytes;
    }
    if (!report.plan.fits()) throw FitError(fit_advice(report.request, report.plan, other_dtypes()));
    report.plan.prediction = simulate(report.plan.pipeline, report.request.job, kTimelineEntries);
    report.most_positions = most_positions(report.request, report.plan, report.plan.slots);
    report.most_sequences = most_sequences(report.request, report.plan, report.positions());
    if (o_.auto_stages && o_.replicas == 1 && o_.context_shards == 1) explain_choice(report);
    check_measurement(report);
    return report;
  }

  bool is_cuda(std::int32_t d) const {
    DeviceWish wish = o_.device;
    if (o_.run_file.stages && (*o_.run_file.stages)[static_cast<std::size_t>(d)].device != DeviceWish{}) {
      wish = (*o_.run_file.stages)[static_cast<std::size_t>(d)].device;
    }
    if (wish.kind != DeviceKind::kAuto) return wish.kind == DeviceKind::kCuda;
    return machine_ && machine_->device(d).cuda;
  }

 private:
  void count_devices() {
    if (o_.run_file.stages) {
      devices_ = static_cast<std::int32_t>(o_.run_file.stages->size());
    } else if (o_.auto_stages || !o_.stages) {
      const std::int64_t of_stage = std::int64_t{o_.replicas} * o_.context_shards;
      devices_ = machine_ ? static_cast<std::int32_t>(machine_->device_count() / of_stage) : 1;
      if (devices_ < 1) {
        throw UsageError(fmt::format(
            "{}: {} pipelines{} of the machine file's {} devices", o_.replicas > 1 ? "--replicas" : "--context-shards",
            o_.replicas, o_.context_shards > 1 ? fmt::format(" of {} context shards", o_.context_shards) : "",
            machine_->device_count()));
      }
      if (o_.auto_stages && !machine_) {
        throw UsageError(
            "--stages: auto chooses among the devices of a machine file; give --machine FILE (stagecoach "
            "profile writes one), or a number");
      }
    } else {
      devices_ = *o_.stages;
    }
    if (devices_ > kMostDevices) throw UsageError(fmt::format("--stages: {} is more than {}", devices_, kMostDevices));
    if (devices_ > model_.config.n_layer && !o_.auto_stages) even_split(model_.config, devices_);  // throws
  }

  std::optional<std::int64_t> budget(std::int32_t d) const {
    if (o_.run_file.stages) {
      const auto& own = (*o_.run_file.stages)[static_cast<std::size_t>(d)].memory_bytes;
      if (own) return own;
    }
    if (o_.memory_per_rank) return o_.memory_per_rank;
    return machine_ ? machine_->device(d).memory_bytes : std::nullopt;
  }

  std::string device_name(std::int32_t d) const {
    const std::string kind = is_cuda(d) ? "cuda" : "cpu";
    return machine_ && !machine_->device(d).name.empty() ? machine_->device(d).name : kind;
  }

  PlanRequest request(const Kinds& kinds) {
    PlanRequest r;
    r.model = model_.config;
    for (std::int32_t d = 0; d < devices_; ++d) r.devices.push_back(planner_device(d, kinds));
    const std::int64_t positions = o_.context.value_or(model_.config.n_positions);
    if (positions > model_.config.n_positions) {
      throw UsageError(
          fmt::format("--context {} is more than the model's {} positions", positions, model_.config.n_positions));
    }
    r.job.sequences = (o_.batch + o_.replicas - 1) / o_.replicas;
    r.job.new_tokens =
        o_.plan_new_tokens.value_or(std::max<std::int64_t>(1, std::min(kDefaultNewTokens, positions / 4)));
    r.job.prompt_tokens = std::max<std::int64_t>(1, positions - r.job.new_tokens + 1);
    if (!o_.auto_stages) r.stages = devices_;
    if (o_.run_file.stages) {
      r.cut.emplace();
      for (const StageSpec& stage : *o_.run_file.stages) r.cut->push_back(stage.blocks);
    }
    r.most_chunk = is_cuda(0) ? kDefaultCudaChunkTokens : kDefaultChunkTokens;
    if (!o_.chunks.empty()) r.chunks = o_.chunks;
    if (o_.chunks.empty() && o_.chunk_tokens) r.chunks = ChunkPlan{*o_.chunk_tokens};
    r.in_flight = o_.in_flight;
    r.shards = o_.context_shards;
    return r;
  }

  PlannerDevice planner_device(std::int32_t d, const Kinds& kinds) {
    const bool cuda = is_cuda(d);
    const std::optional<std::int64_t> room = budget(d);
    layouts_.push_back(cuda ? cuda_layout(room.value_or(kUnlimitedPool)) : cpu_layout(o_.threads.value_or(1)));
    PlannerDevice device;
    try {
      device.layout = device_layout(*layouts_.back(), model_.config, kinds.dtype, kinds.kv_dtype);
    } catch (const std::invalid_argument& error) {  // a model that such devices cannot compute
      throw UsageError(fmt::format("--device: {}", error.what()));
    }
    device.budget_bytes = room;
    if (!cuda)
      device.process_bytes =
          process_bytes(1, o_.threads.value_or(1)) + (devices_ * o_.context_shards > 1 ? kMpiBytes : 0);
    device.link = link_speed(machine_);
    device.speed = device_speed(machine_, d, cuda, kinds.dtype, kinds.kv_dtype);
    return device;
  }

  std::vector<OtherDTypes> other_dtypes() {
    std::vector<OtherDTypes> others;
    if (kinds_.kv_dtype == DType::kFloat32) {
      others.push_back({"--kv-dtype float16", request({kinds_.dtype, DType::kFloat16})});
    }
    if (kinds_.dtype == DType::kFloat32) {
      others.push_back({"--dtype float16", request({DType::kFloat16, kinds_.kv_dtype})});
      if (kinds_.kv_dtype == DType::kFloat32) {
        others.push_back({"--dtype float16 with --kv-dtype float16", request({DType::kFloat16, DType::kFloat16})});
      }
    }
    if (kinds_.dtype != DType::kInt8 && !is_cuda(0)) {
      others.push_back({"--dtype int8", request({DType::kInt8, kinds_.kv_dtype})});
    }
    return others;
  }

  void explain_choice(PlanReport& report) const {
    report.other_ways = alternatives(report.request);
    const auto stages = static_cast<std::int32_t>(report.plan.stages.size());
    if (stages < devices_) {
      report.notes.push_back(fmt::format(
          "{} of {} devices: with more stages this job would not be done sooner (more than 1 %).", stages, devices_));
    }
    for (const Alternative& way : report.other_ways) {
      if (way.replicas > 1 && way.fits && way.total_s < report.plan.prediction.total_s) {
        report.notes.push_back(
            fmt::format("{0} pipelines of {1} stages that share the sequences would be done {2:.2f} times as fast: "
                        "--replicas {0} --stages {1}.",
                        way.replicas, way.stages, report.plan.prediction.total_s / way.total_s));
        break;
      }
    }
    const Alternative* soonest = nullptr;
    for (const Alternative& way : report.other_ways) {
      if (way.shards > 1 && way.fits && (soonest == nullptr || way.ttft_s < soonest->ttft_s)) soonest = &way;
    }
    if (soonest != nullptr && soonest->ttft_s < report.plan.prediction.ttft_s) {
      report.notes.push_back(
          fmt::format("{0} context shards of each of {1} stages would give the first token {2:.2f} times as soon: "
                      "--context-shards {0} --stages {1}.",
                      soonest->shards, soonest->stages, report.plan.prediction.ttft_s / soonest->ttft_s));
    }
  }

  void check_measurement(PlanReport& report) const {
    if (!machine_) return;
    for (const MachineDevice& device : machine_->devices) {
      if ((device.dtype.empty() || device.dtype == report.dtype) &&
          (device.kv_dtype.empty() || device.kv_dtype == report.kv_dtype)) {
        continue;
      }
      report.notes.push_back(
          fmt::format("{} was measured with {} weights and {} keys and values, so the times are of those.",
                      device.name.empty() ? "A device" : device.name, device.dtype, device.kv_dtype));
      return;
    }
  }

  const Options& o_;
  Model model_;
  std::optional<Machine> machine_;
  std::int32_t devices_ = 1;
  Kinds kinds_;
  std::vector<std::unique_ptr<MemoryLayout>> layouts_;  // that the requests' devices refer to
};

void write_file(const std::string& path, const std::string& text) {
  OutputFile file(path);
  file.write(text);
  file.commit();
}

}  // namespace

std::vector<PlannedRank> planned_ranks(const Options& options) {
  Planner planner(options);
  const PlanReport report = planner.report();
  std::vector<PlannedRank> ranks;
  for (const PlannedStage& stage : report.plan.stages) {
    ranks.push_back({planner.is_cuda(stage.device), stage.needed_bytes()});
  }
  return ranks;
}

int run_plan(const Options& options, const World& world) {
  world.agree([&] {
    if (world.rank() != 0) return;
    Planner planner(options);  // its layouts are the report's
    const PlanReport report = planner.report();
    if (!options.write_path.empty()) write_file(options.write_path, plan_run_file(report));
    if (!options.svg_path.empty()) write_file(options.svg_path, plan_svg(report));
    write_all(STDOUT_FILENO, options.json ? plan_json(report) : plan_text(report), "standard output");
  });
  return 0;
}

}  // namespace stagecoach
