// What a stage did and when: the time it computed, scheduled and waited, and if asked for each piece of that as an
// event.
//
// The pipeline loops call StageClock where one thing ends and another begins; a stamp costs some 30 ns, an event of 32
// bytes as much again. A stage is always in one state: it computes, stage 0 schedules, or it waits. Totals run from the
// first microbatch to the end of the last, so that their sum is the time between the two. Knows no files and no ranks;
// times are nanoseconds of this process's steady clock. One thread each.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/microbatch.hpp"

namespace stagecoach {

enum class Activity : std::uint8_t {
  kWait,      // for a header, rows, tokens or prompts
  kSchedule,  // stage 0: took tokens or made a microbatch
  kCompute,   // the stage's operations, on the last stage with the choice of tokens
  kReceive,   // of rows: from the header's arrival to theirs
  kSend,      // of rows: until they have left
  kWrite,     // of results
};
inline constexpr int kActivities = 6;

// Events of one lane do not overlap: the loop's own, each residual buffer's receives and sends, the results'.
inline constexpr std::uint16_t kLoopLane = 0;
inline constexpr std::uint16_t kFirstBufferLane = 1;
inline constexpr std::uint16_t kResultsLane = 0xffff;

struct TraceEvent {
  std::int64_t start_ns = 0;
  std::int64_t duration_ns = 0;
  std::uint32_t microbatch = 0;  // low half of its id; of results: the prompt's index
  std::int32_t rows = 0;
  std::int32_t prefill_rows = 0;  // of these
  std::uint16_t lane = kLoopLane;
  Activity activity = Activity::kWait;
  std::uint8_t padding = 0;
};
static_assert(sizeof(TraceEvent) == 32);

// The first `most` events; later ones are counted only. Memory grows piece by piece.
class TraceBuffer {
 public:
  static constexpr std::int64_t kMostEvents = 1'000'000;
  static constexpr std::int64_t kPieceEvents = 16384;
  static constexpr std::int64_t kMostBytes = (kMostEvents + kPieceEvents) * std::int64_t{sizeof(TraceEvent)};

  explicit TraceBuffer(std::int64_t most = kMostEvents) : most_(most) {}
  void add(const TraceEvent& event) {
    if (size_ >= most_) {
      ++dropped_;
      return;
    }
    if (size_ % kPieceEvents == 0) pieces_.emplace_back().reserve(kPieceEvents);
    pieces_.back().push_back(event);
    ++size_;
  }
  std::int64_t size() const { return size_; }
  std::int64_t dropped() const { return dropped_; }
  std::size_t pieces() const { return pieces_.size(); }
  std::span<const TraceEvent> piece(std::size_t index) const { return pieces_[index]; }

 private:
  std::int64_t most_;
  std::int64_t size_ = 0;
  std::int64_t dropped_ = 0;
  std::vector<std::vector<TraceEvent>> pieces_;
};

// Nanoseconds of the steady clock.
std::int64_t now_ns();

// Which rows of microbatches are of prompts: those of a slot, from its first or from where it forks, up to the first
// that a token is picked for. Those that a sequence feeds once more after it had to give up its pages count again.
class PrefillCounter {
 public:
  std::int32_t count(const Microbatch& microbatch);

 private:
  bool decodes(std::int32_t slot) const {
    return static_cast<std::size_t>(slot) < decodes_.size() && decodes_[static_cast<std::size_t>(slot)];
  }
  void set(std::int32_t slot, bool decodes);

  std::vector<bool> decodes_;  // [slot]
};

struct StageTimes {
  std::int64_t busy_ns = 0;
  std::int64_t schedule_ns = 0;
  std::int64_t idle_ns = 0;
};

class StageClock {
 public:
  // `trace` may be null, otherwise it outlives the clock.
  explicit StageClock(TraceBuffer* trace) : trace_(trace), free_since_(now_ns()) {}

  // From here on the stage computes.
  void begin_compute(const Microbatch& microbatch);
  // The rows of what began have come only now; until here the device waited.
  void rows_arrived() { compute_since_ = now_ns(); }
  void end_compute();
  // Stage 0 has scheduled from `begin_ns` until now.
  void scheduled(std::int64_t begin_ns, std::uint64_t microbatch);

  const StageTimes& times() const { return times_; }
  TraceBuffer* trace() const { return trace_; }

 private:
  void trace_loop(Activity activity, std::int64_t from, std::int64_t to);

  TraceBuffer* trace_;
  StageTimes times_;
  StageTimes pending_;  // since the last microbatch: counts when another follows
  PrefillCounter prefill_;
  TraceEvent current_;  // of what is computed
  bool any_ = false;    // microbatch so far
  std::int64_t free_since_;
  std::int64_t compute_since_ = 0;
};

}  // namespace stagecoach
