// Decides which rows travel in which microbatch: a pure state machine, without devices, clocks, threads or MPI.
//
// Runs on stage 0 only. Requests are admitted in order while a slot is free and the KV pool can hold a whole sample (so
// nothing that was started ever waits for pages). A microbatch mixes one share of the sequences that are ready to
// decode with up to `chunk_tokens` prompt rows; several chunks of one prompt may be in flight, one behind the other,
// and their lengths may be planned by position. Tokens do not depend on any of these choices.
//
// Several samples of one prompt share its pages: a slot of its own (the holder) takes the prompt but for its last
// token, then each sample forks from it as slots and pages allow, shares the full pages, copies the partial one, and
// feeds the prompt's last token itself.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "partition/chunking.hpp"
#include "runtime/microbatch.hpp"
#include "runtime/request.hpp"
#include "runtime/stop_strings.hpp"

namespace stagecoach {

struct SchedulerLimits {
  std::int32_t n_positions = 0;
  std::int32_t eos = -1;          // token that ends a sample, -1: none
  std::int32_t pages = 0;         // KV pool
  std::int32_t slots = 0;         // samples at once
  std::int32_t chunk_tokens = 0;  // most prompt rows in a microbatch
  std::int32_t in_flight = 0;     // most microbatches at once
  bool hold_decode = false;       // decode only when no admitted prompt is left to prefill (benchmarks)
  ChunkPlan chunks = {};          // lengths by position of the prompt, none above chunk_tokens; empty: all that long

  std::int32_t max_rows() const { return chunk_tokens + slots; }
  std::int32_t tables() const { return 2 * slots; }  // slot numbers in use: samples, then holders of shared prompts
};

// Positions whose K and V a request may need: the last new token needs none, nor does the last one that is scored.
std::int32_t positions_needed(const Request& request, std::int32_t n_positions);
// Pages that must be there for a request to run: its shared prompt, if any, and one sample.
std::int32_t pages_needed(const Request& request, std::int32_t n_positions);

class Scheduler {
 public:
  struct TokenEvent {
    std::int64_t request_index;
    std::int32_t token;
    std::int32_t sample;  // its number
  };
  struct Progress {
    std::vector<TokenEvent> tokens;
    std::vector<Sample> finished;
  };
  using TokenBytes = std::function<std::string(std::int32_t token)>;

  // `token_bytes` gives a token's text; needed only for requests with stop strings.
  explicit Scheduler(const SchedulerLimits& limits, TokenBytes token_bytes = {});

  // True while it is worth handing over another request: few are waiting.
  bool wants_requests() const { return waiting_.size() < 2; }
  // Throws std::invalid_argument when the request could never run (empty, longer than n_positions or than the pool).
  void add(Request request);
  // The next microbatch, or nothing when all work is in flight or the in-flight limit is reached.
  std::optional<Microbatch> next();
  // Tokens of a microbatch that `next` gave out, in any order of ids.
  Progress complete(const TokenBatch& batch);

  bool idle() const { return waiting_.empty() && groups_.empty() && in_flight_.empty(); }
  std::int32_t in_flight() const { return static_cast<std::int32_t>(in_flight_.size()); }
  std::int32_t active() const { return active_; }
  std::int32_t free_pages() const { return static_cast<std::int32_t>(free_pages_.size()); }

 private:
  // An admitted request and its samples.
  struct Group {
    Request request;
    std::int32_t started = 0, finished = 0;  // samples
    std::int32_t sample_pages = 0;           // that each sample may need of its own
    std::int32_t holder = -1;                // slot of the shared prompt
    bool prompt_ready = true;                // the holder's rows have all left

    std::int32_t prompt() const { return static_cast<std::int32_t>(request.tokens.size()); }
    bool scores() const { return request.score_from > 0; }
  };
  struct Sequence {
    Group* group = nullptr;
    Sample sample;
    StopStrings stop;
    std::int32_t prefilled = 0;  // prompt rows handed out or taken over
    std::int32_t last_token = 0;
    std::int32_t unscored = 0;  // scores that have not come yet
    std::int32_t shared_pages = 0;
    std::vector<std::int32_t> pages;  // its own
  };
  struct Awaited {
    std::int32_t slot, position;
  };

  void admit();
  bool admit_front();
  bool start_samples(Group& group);
  void start_sample(Group& group);
  std::int32_t prefill_end(std::int32_t slot) const;
  std::int32_t chunk_room(std::int32_t position) const;
  void append_pages(std::int32_t slot, std::int32_t positions, std::vector<SlotCommand>& commands);
  void set_sampling(std::int32_t slot, const Request& request, std::int32_t sample);
  void add_decode_rows(Microbatch& microbatch);
  void add_prefill_rows(Microbatch& microbatch);
  void add_prompt_row(std::int32_t slot, std::int32_t position, Microbatch& microbatch) const;
  void take_token(const PickedToken& picked, Progress& progress);
  void take_score(const PickedToken& picked, std::int32_t position, Progress& progress);
  void finish(std::int32_t slot, FinishReason reason, Progress& progress);
  void release(std::int32_t slot);
  void close(Group& group);
  bool is_holder(std::int32_t slot) const { return slot >= limits_.slots; }
  Sequence& at(std::int32_t slot) { return sequences_[static_cast<std::size_t>(slot)]; }
  const Sequence& at(std::int32_t slot) const { return sequences_[static_cast<std::size_t>(slot)]; }

  SchedulerLimits limits_;
  TokenBytes token_bytes_;
  std::uint64_t next_id_ = 1;
  std::deque<Request> waiting_;
  std::list<Group> groups_;          // admitted, not finished, in order
  std::vector<Sequence> sequences_;  // [slot]
  std::vector<std::int32_t> free_slots_, free_holders_;
  std::vector<std::int32_t> free_pages_;
  std::int32_t unpromised_pages_ = 0;    // pages that nothing admitted may still ask for
  std::int32_t active_ = 0;              // samples started, not finished
  std::int32_t decoding_ = 0;            // of these, past their prompt
  std::deque<std::int32_t> prefilling_;  // slots with prompt rows left, in order of admission
  std::deque<std::int32_t> ready_;       // slots whose next decode row may go
  std::vector<SlotCommand> commands_;    // for the next microbatch, before those of its rows
  std::unordered_map<std::uint64_t, std::vector<Awaited>> in_flight_;  // id -> rows that get an answer
};

}  // namespace stagecoach
