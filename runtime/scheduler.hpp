// Decides which rows travel in which microbatch: a pure state machine, without devices, clocks, threads or MPI.
//
// Runs on stage 0 only. Requests are admitted in order while a slot is free and the KV pool can hold the whole sequence
// (so nothing that was admitted ever waits for pages). A microbatch mixes one share of the sequences that are ready to
// decode with up to `chunk_tokens` prompt rows; several chunks of one prompt may be in flight, one behind the other.
// Tokens do not depend on any of these choices.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <unordered_map>
#include <vector>

#include "runtime/microbatch.hpp"
#include "runtime/request.hpp"

namespace stagecoach {

struct SchedulerLimits {
  std::int32_t n_positions = 0;
  std::int32_t eos = -1;          // token that ends a sample, -1: none
  std::int32_t pages = 0;         // KV pool
  std::int32_t slots = 0;         // sequences at once
  std::int32_t chunk_tokens = 0;  // most prompt rows in a microbatch
  std::int32_t in_flight = 0;     // most microbatches at once
  bool hold_decode = false;       // decode only when no admitted prompt is left to prefill (benchmarks)

  std::int32_t max_rows() const { return chunk_tokens + slots; }
};

// Positions whose K and V a request may need: the last new token needs none.
std::int32_t positions_needed(std::int32_t prompt_tokens, std::int32_t max_new_tokens, std::int32_t n_positions);

class Scheduler {
 public:
  struct TokenEvent {
    std::int64_t request_index;
    std::int32_t token;
  };
  struct Finished {
    Request request;
    Sample sample;
  };
  struct Progress {
    std::vector<TokenEvent> tokens;
    std::vector<Finished> finished;
  };

  explicit Scheduler(const SchedulerLimits& limits);

  // True while it is worth handing over another request: few are waiting.
  bool wants_requests() const { return waiting_.size() < 2; }
  // Throws std::invalid_argument when the request could never run (empty, longer than n_positions or than the pool).
  void add(Request request);
  // The next microbatch, or nothing when all work is in flight or the in-flight limit is reached.
  std::optional<Microbatch> next();
  // Tokens of a microbatch that `next` gave out, in any order of ids.
  Progress complete(const TokenBatch& batch);

  bool idle() const { return waiting_.empty() && active_ == 0 && in_flight_.empty(); }
  std::int32_t in_flight() const { return static_cast<std::int32_t>(in_flight_.size()); }
  std::int32_t active() const { return active_; }
  std::int32_t free_pages() const { return static_cast<std::int32_t>(free_pages_.size()); }

 private:
  struct Sequence {
    bool used = false;
    Request request;
    Sample sample;
    std::int32_t prefilled = 0;  // prompt rows handed out
    std::int32_t last_token = 0;
    std::int32_t pages_promised = 0;
    std::vector<std::int32_t> pages;
  };

  void admit();
  void append_pages(std::int32_t slot, std::int32_t positions, Microbatch& microbatch);
  void add_decode_rows(Microbatch& microbatch);
  void add_prefill_rows(Microbatch& microbatch);
  void finish(std::int32_t slot, FinishReason reason, Progress& progress);
  std::uint32_t sample_flags(const Sequence& sequence) const;
  Sequence& at(std::int32_t slot) { return sequences_[static_cast<std::size_t>(slot)]; }

  SchedulerLimits limits_;
  std::uint64_t next_id_ = 1;
  std::deque<Request> waiting_;
  std::vector<Sequence> sequences_;  // [slot]
  std::vector<std::int32_t> free_slots_;
  std::vector<std::int32_t> free_pages_;
  std::int32_t unpromised_pages_ = 0;    // pages that no admitted sequence may still ask for
  std::int32_t active_ = 0;              // admitted, not finished
  std::int32_t decoding_ = 0;            // past their prompt, not finished
  std::deque<std::int32_t> prefilling_;  // slots with prompt rows left, in order of admission
  std::deque<std::int32_t> ready_;       // slots whose next decode row may go
  std::vector<SlotCommand> drops_;       // for the next microbatch
  std::unordered_map<std::uint64_t, std::vector<std::int32_t>> in_flight_;  // id -> slots that get a token
};

}  // namespace stagecoach
