#include "runtime/stage_trace.hpp"

#include <chrono>

namespace stagecoach {
namespace {

constexpr std::int64_t kShortestWait = 1000;  // ns; shorter ones are between two calls and tell nothing

}  // namespace

std::int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void PrefillCounter::set(std::int32_t slot, bool decodes) {
  const auto s = static_cast<std::size_t>(slot);
  if (s >= decodes_.size()) decodes_.resize(s + 1);
  decodes_[s] = decodes;
}

std::int32_t PrefillCounter::count(const Microbatch& microbatch) {
  for (const SlotCommand& command : microbatch.commands) {
    if (command.kind == SlotCommand::Kind::kDrop || command.kind == SlotCommand::Kind::kFork) set(command.slot, false);
  }
  std::int32_t rows = 0;
  for (const Row& row : microbatch.rows) {
    if (row.position == 0) set(row.slot, false);
    if (decodes(row.slot)) continue;
    ++rows;
    if ((row.flags & kRowSample) != 0) set(row.slot, true);
  }
  return rows;
}

void StageClock::trace_loop(Activity activity, std::int64_t from, std::int64_t to) {
  if (trace_ == nullptr || (activity == Activity::kWait && to - from < kShortestWait)) return;
  TraceEvent event = current_;
  event.activity = activity;
  event.start_ns = from;
  event.duration_ns = to - from;
  if (activity != Activity::kCompute) event.rows = event.prefill_rows = 0;
  trace_->add(event);
}

void StageClock::begin_compute(const Microbatch& microbatch) {
  if (trace_ != nullptr) {
    current_.microbatch = static_cast<std::uint32_t>(microbatch.id);
    current_.rows = static_cast<std::int32_t>(microbatch.rows.size());
    current_.prefill_rows = prefill_.count(microbatch);
  }
  compute_since_ = now_ns();
}

void StageClock::end_compute() {
  const std::int64_t now = now_ns();
  pending_.idle_ns += compute_since_ - free_since_;
  if (any_) {
    times_.idle_ns += pending_.idle_ns;
    times_.schedule_ns += pending_.schedule_ns;
  }
  any_ = true;
  pending_ = {};
  times_.busy_ns += now - compute_since_;
  trace_loop(Activity::kWait, free_since_, compute_since_);
  trace_loop(Activity::kCompute, compute_since_, now);
  free_since_ = now;
}

void StageClock::scheduled(std::int64_t begin_ns, std::uint64_t microbatch) {
  const std::int64_t now = now_ns();
  pending_.idle_ns += begin_ns - free_since_;
  pending_.schedule_ns += now - begin_ns;
  current_.microbatch = static_cast<std::uint32_t>(microbatch);
  trace_loop(Activity::kWait, free_since_, begin_ns);
  trace_loop(Activity::kSchedule, begin_ns, now);
  free_since_ = now;
}

}  // namespace stagecoach
