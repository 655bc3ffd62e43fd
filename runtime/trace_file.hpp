// The events of all stages as one Chrome trace (JSON object format), which Perfetto and chrome://tracing show.
//
// Written as it comes, process by process: memory does not grow with the number of events. Each stage is a process of
// the trace, its loop the thread "stage", each residual buffer a thread of its own with what was moved in and out of
// it, and on stage 0 "results" what was written. Times are microseconds since the run began, by rank 0's clock.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "runtime/clock_offset.hpp"
#include "runtime/output_file.hpp"
#include "runtime/stage_trace.hpp"

namespace stagecoach {

// One process of the trace.
struct TraceProcess {
  std::int32_t rank = 0;
  std::optional<std::int32_t> replica = {};  // where there are several
  std::int32_t stage = 0;
  std::optional<std::int32_t> shard = {};  // where there are several
  std::string host;
  std::int64_t dropped = 0;  // events that had no room
  ClockLine clock;  // against rank 0's
};

class TraceFile {
 public:
  // Of `file`, which outlives this, everything is written here; committing it is the caller's.
  TraceFile(OutputFile& file, std::int64_t origin_ns);  // by rank 0's clock

  void begin(const TraceProcess& process);
  void write(std::span<const TraceEvent> events);  // of the process begun last
  void end();                                      // what stands behind the events

 private:
  void name_threads();
  void put(const std::string& event);
  void flush();

  OutputFile& file_;
  std::int64_t origin_ns_;
  std::vector<TraceProcess> processes_;
  std::set<std::uint16_t> lanes_;  // of the last one
  std::string text_;               // not written yet
  bool any_ = false;
};

}  // namespace stagecoach
