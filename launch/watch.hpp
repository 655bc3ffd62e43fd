// What is kept of a run for --metrics and --trace, and written by rank 0 once it has ended well.
//
// Both files are made before anything runs, so that a name that cannot be written is known then, and appear under their
// names only when they are complete. Everything is per rank and stage: whoever calls `finish` gathers all of them.
#pragma once

#include <list>
#include <mutex>
#include <optional>
#include <vector>

#include "launch/command_line.hpp"
#include "launch/session.hpp"
#include "launch/world.hpp"
#include "runtime/clock_offset.hpp"
#include "runtime/metrics.hpp"
#include "runtime/output_file.hpp"
#include "runtime/stage_trace.hpp"
#include "runtime/trace_file.hpp"

namespace stagecoach {

// Puts a meter, which may be null, around the hooks of a pipeline's leader, or of whoever hands out the prompts.
void attach(LeaderHooks& hooks, RunMeter* meter);
void count_prompts(LeaderHooks& hooks, RunMeter* meter);

class RunWatch {
 public:
  RunWatch(const Options& options, const World& world) : options_(options), world_(world) {}

  // On rank 0, once signals are caught. Throws UsageError.
  void open();
  // Before the run; collective.
  void begin();
  // Another meter, for the leader of a pipeline in this process; null without --metrics. `finish` adds them up. May be
  // called from any thread.
  RunMeter* add_meter();
  // For the thread that writes results; null when nobody asked.
  TraceBuffer* results() { return results_ ? &*results_ : nullptr; }
  // What an earlier run of the job had finished.
  void set_earlier_tokens(std::int64_t tokens) { earlier_tokens_ = tokens; }
  // After a run that went well; collective. Throws OutputError.
  void finish(const Session& session);

 private:
  struct Stage {
    std::int32_t rank = 0;  // in the order of places; the figures have the launcher's
    StageFigures figures;
    std::int64_t pieces = 0;  // of events
    std::int64_t dropped = 0;
  };
  std::vector<Stage> gather(const Session& session) const;
  RunMeter gather_meters() const;
  void write_metrics(const Session& session, const RunMeter& meter, const std::vector<Stage>& stages, double wall_s);
  void write_trace(const Session& session, const std::vector<Stage>& stages);
  TraceProcess process_of(const Session& session, const Stage& stage, const std::vector<ClockOffset>& last,
                          std::int64_t last_ns) const;

  const Options& options_;
  const World& world_;
  std::optional<OutputFile> metrics_file_, trace_file_;
  std::mutex mutex_;
  std::list<RunMeter> meters_;
  std::optional<TraceBuffer> results_;
  std::vector<ClockOffset> first_;  // by rank
  std::int64_t begun_ns_ = 0;
  std::int64_t earlier_tokens_ = 0;
};

}  // namespace stagecoach
