// Assembles the pipelines for one command: opens the model, makes the plan, sizes the KV pools, loads weights and runs
// the loops, either as one rank of an MPI job or as all stages of all replicas in threads of this process.
//
// Steps are collective: every rank makes the same calls in the same order. Mistakes end all ranks with one message.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "kernels/profiling.hpp"
#include "launch/command_line.hpp"
#include "launch/devices.hpp"
#include "launch/fit.hpp"
#include "launch/world.hpp"
#include "partition/grid.hpp"
#include "partition/plan.hpp"
#include "runtime/loopback.hpp"
#include "runtime/pipeline.hpp"
#include "runtime/replicas.hpp"
#include "runtime/weight_source.hpp"

namespace stagecoach {

class Session {
 public:
  // Opens the model and makes the plan.
  Session(const Options& options, const World& world);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  const Model& model() const { return *model_; }
  const Plan& plan() const { return plan_; }
  const Grid& grid() const { return grid_; }
  // Places of the replicas' leaders.
  std::vector<std::int32_t> leaders() const;
  // This process is rank 0.
  bool leads() const { return world_.rank() == 0; }
  // To be called now and then in what takes long before or in `prepare`: other ranks wait for this one.
  void alive() const { world_.alive(); }
  // From here on INT, TERM and USR1 end the run in an orderly way: before anything is written.
  void catch_interrupts() const;

  // To be called before `run`: an interrupt leaves what the leader has begun a few seconds to finish.
  void drain_when_interrupted() { drains_ = true; }
  // To be called before `prepare`: takes the time of each operation, once `skip_rows` rows went through a stage.
  void profile_after(std::int64_t skip_rows) { profile_after_rows_ = skip_rows; }
  // Sizes and loads this process's stages. `size` runs on rank 0 only and may throw what the user did wrong. False, on
  // every rank, when it says that there is nothing to do.
  bool prepare(const std::function<std::optional<WorkSize>()>& size);
  // For the leader's scheduler.
  SchedulerLimits scheduler_limits() const;
  DType dtype() const { return dtype_; }
  DType kv_dtype() const { return kv_dtype_; }
  // "cpu" or "cuda", of rank 0's first stage.
  std::string_view device() const { return devices_.front().cuda ? "cuda" : "cpu"; }
  std::int32_t threads() const { return threads_; }

  // What a leader gets beside its pipeline, to talk to those of other replicas.
  using Lead = std::function<void(Leader&, const OfficeOptions&)>;
  // Runs the pipelines: `lead` on rank 0, `help` for the first stage of every other replica; the other stages follow
  // until these return. Reports by stage and shard of the first replica on rank 0, otherwise none. Throws RunFailed.
  std::vector<StageReport> run(const Lead& lead, const Lead& help = {});

  // This process's stages and what their operations took; after `run`, if asked for.
  struct StageProfile {
    std::int32_t stage = 0;
    Profile profile;
  };
  std::vector<StageProfile> profiles() const;
  // This process's stages and what they did; after `run`. `trace` is null unless --trace was given.
  struct StageRecord {
    std::int32_t place = 0;
    std::string device;
    StageReport report;
    const TraceBuffer* trace = nullptr;
  };
  std::vector<StageRecord> records() const;

 private:
  struct Stage;
  bool threads_are_stages() const { return world_.size() == 1; }
  std::vector<std::int32_t> local_places() const;
  const StageSpec& spec(std::int32_t place) const;
  std::int64_t trace_bytes() const;
  void make_plan();
  void map_weights(bool any_cuda);
  void make_stages();
  std::vector<std::optional<std::int64_t>> local_budgets() const;
  void find_fit(const WorkSize& work);
  Plan settle_open(const FitRequest& request) const;
  void log_peak() const;
  std::unique_ptr<Backend> make_backend(const StageDevice& device, std::int32_t place) const;
  void connect();
  void load(Stage& stage);
  void load_all();
  StageContext context(Stage& stage) const;
  void run_stage(Stage& stage, const Lead& help) const;
  OfficeOptions office(const Stage& stage) const;
  std::string prefix(std::int32_t place) const;

  Options options_;
  const World& world_;
  std::unique_ptr<Model> model_;
  Grid grid_;
  Plan plan_;  // of each replica
  DType dtype_ = DType::kFloat32;
  DType kv_dtype_ = DType::kFloat32;
  std::int32_t threads_ = 1;
  std::int32_t decode_split_ = 0;  // as SchedulerLimits'
  std::int32_t slots_ = 1;
  std::int32_t pages_ = 1;
  std::vector<StageDevice> devices_;  // of this process's stages
  std::vector<StageRoom> rooms_;      // by place
  std::vector<StageNeed> needs_;      // by place
  bool chunks_are_open_ = false;      // for the partitioner to choose
  bool use_nccl_ = false;
  bool failed_ = false;  // `run` did
  bool drains_ = false;
  std::optional<std::int64_t> profile_after_rows_;
  std::unique_ptr<LoopbackHub> hub_;
  std::vector<std::unique_ptr<Stage>> stages_;  // of this process
};

}  // namespace stagecoach
