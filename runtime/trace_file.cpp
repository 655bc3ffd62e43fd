#include "runtime/trace_file.hpp"

#include <fmt/format.h>

#include <array>

#include "runtime/results.hpp"

namespace stagecoach {
namespace {

constexpr std::size_t kFlushBytes = 1 << 20;
constexpr std::array<const char*, kActivities> kNames = {"wait", "schedule", "compute", "receive", "send", "write"};

// Nanoseconds as microseconds.
std::string us(std::int64_t ns) {
  const auto size = static_cast<std::uint64_t>(ns < 0 ? -ns : ns);
  return fmt::format("{}{}.{:03}", ns < 0 ? "-" : "", size / 1000, size % 1000);
}

std::string thread_name(std::uint16_t lane) {
  if (lane == kLoopLane) return "stage";
  if (lane == kResultsLane) return "results";
  return fmt::format("buffer {}", lane - kFirstBufferLane);
}

std::string arguments(const TraceEvent& e) {
  switch (e.activity) {
    case Activity::kCompute:
      return fmt::format(R"("microbatch":{},"rows":{},"prefill_rows":{},"decode_rows":{})", e.microbatch, e.rows,
                         e.prefill_rows, e.rows - e.prefill_rows);
    case Activity::kReceive:
    case Activity::kSend:
      return fmt::format(R"("microbatch":{},"rows":{})", e.microbatch, e.rows);
    case Activity::kWrite:
      return fmt::format(R"("prompt":{})", e.microbatch);
    case Activity::kWait:
    case Activity::kSchedule:
      break;
  }
  return fmt::format(R"("microbatch":{})", e.microbatch);
}

}  // namespace

TraceFile::TraceFile(OutputFile& file, std::int64_t origin_ns) : file_(file), origin_ns_(origin_ns) {
  text_ = "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[";
}

void TraceFile::begin(const TraceProcess& process) {
  name_threads();
  processes_.push_back(process);
  const std::size_t pid = processes_.size() - 1;
  const std::string name =
      fmt::format("rank {}, {}stage {}{}, {}", process.rank,
                  process.replica ? fmt::format("replica {}, ", *process.replica) : "", process.stage,
                  process.shard ? fmt::format(", shard {}", *process.shard) : "", process.host);
  put(fmt::format(R"({{"ph":"M","pid":{},"name":"process_name","args":{{"name":{}}}}})", pid, json_string(name)));
  put(fmt::format(R"({{"ph":"M","pid":{0},"name":"process_sort_index","args":{{"sort_index":{0}}}}})", pid));
}

void TraceFile::write(std::span<const TraceEvent> events) {
  const ClockLine& clock = processes_.back().clock;
  for (const TraceEvent& e : events) {
    lanes_.insert(e.lane);
    // The end is converted and not the duration, so that neighbours do not overlap.
    const std::int64_t start = clock.ours(e.start_ns);
    const std::int64_t end = clock.ours(e.start_ns + e.duration_ns);
    put(fmt::format(R"({{"ph":"X","pid":{},"tid":{},"ts":{},"dur":{},"name":"{}","args":{{{}}}}})",
                    processes_.size() - 1, e.lane, us(start - origin_ns_), us(end - start),
                    kNames[static_cast<std::size_t>(e.activity)], arguments(e)));
  }
}

void TraceFile::end() {
  name_threads();
  text_ += "\n],\"otherData\":{\"stages\":[";
  for (std::size_t pid = 0; pid < processes_.size(); ++pid) {
    const TraceProcess& p = processes_[pid];
    text_ += fmt::format(
        R"({}{{"pid":{},"rank":{},"replica":{},"stage":{},"shard":{},"host":{},"dropped_events":{},"clock_error_us":{}}})",
        pid == 0 ? "" : ",\n", pid, p.rank, p.replica.value_or(0), p.stage, p.shard.value_or(0), json_string(p.host), p.dropped,
        us(p.clock.error_ns));
  }
  text_ += "]}}\n";
  flush();
}

void TraceFile::name_threads() {
  for (const std::uint16_t lane : lanes_) {
    put(fmt::format(R"({{"ph":"M","pid":{},"tid":{},"name":"thread_name","args":{{"name":"{}"}}}})",
                    processes_.size() - 1, lane, thread_name(lane)));
  }
  lanes_.clear();
}

void TraceFile::put(const std::string& event) {
  text_ += any_ ? ",\n" : "\n";
  any_ = true;
  text_ += event;
  if (text_.size() >= kFlushBytes) flush();
}

void TraceFile::flush() {
  file_.write(text_);
  text_.clear();
}

}  // namespace stagecoach
