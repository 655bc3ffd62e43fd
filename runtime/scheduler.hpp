// Decides which rows travel in which microbatch: a pure state machine, without devices, clocks, threads or MPI.
//
// Runs on stage 0 only. A microbatch mixes one share of the sequences that are ready to decode with prompt rows;
// several chunks of one prompt may be in flight, one behind the other, and their lengths may be planned by position.
// While others decode, prompt rows are spread over the microbatches in flight, so that all cost about the same. Tokens
// do not depend on any of these choices.
//
// Pages: a sequence is admitted, in order, when there is a slot and there are pages for what it feeds first, with some
// to spare; more come as it grows. When they run out, whoever came last is put back: it gives up slot and pages, waits
// in its old place, and later feeds its prompt and what it has generated once more, which gives the same K and V and so
// the same tokens. The first of all is never put back and can always have what it needs, so everybody gets on in the
// end: this is the recomputation of Kwon et al., "Efficient Memory Management for Large Language Model Serving with
// PagedAttention" (2023), with its block table.
//
// Shared pages: several samples of one prompt share its pages. A slot of its own (the holder) takes the prompt but for
// its last token, then each sample forks from it as slots and pages allow, shares the full pages, copies the partial
// one, and feeds the prompt's last token itself. Prompts with a common beginning share full pages, too (page_pool.hpp),
// unless they have a repetition penalty, for which every token must be fed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "partition/chunking.hpp"
#include "runtime/microbatch.hpp"
#include "runtime/page_pool.hpp"
#include "runtime/request.hpp"
#include "runtime/stop_strings.hpp"

namespace stagecoach {

struct SchedulerLimits {
  std::int32_t n_positions = 0;
  std::int32_t eos = -1;          // token that ends a sample, -1: none
  std::int32_t pages = 0;         // KV pool, of each context shard
  std::int32_t slots = 0;         // samples at once
  std::int32_t chunk_tokens = 0;  // most prompt rows in a microbatch
  std::int32_t in_flight = 0;     // most microbatches at once
  bool hold_decode = false;       // decode only when no admitted prompt is left to prefill (benchmarks)
  ChunkPlan chunks = {};          // lengths by position of the prompt, none above chunk_tokens; empty: all that long
  std::int32_t decode_split = 0;  // microbatches that decode rows are spread over; 0: as many as in flight
  std::int32_t shards = 1;        // context shards

  std::int32_t max_rows() const { return chunk_tokens + slots; }
  std::int32_t tables() const { return 2 * slots; }  // slot numbers in use: samples, then holders of shared prompts
};

// Positions whose K and V a request may need: the last new token needs none, nor does the last one that is scored.
std::int32_t positions_needed(const Request& request, std::int32_t n_positions);
// Pages that must be there, at each context shard, for a request to run: its shared prompt, if any, and one sample.
std::int32_t pages_needed(const Request& request, std::int32_t n_positions, std::int32_t shards = 1);

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

  // True while it is worth handing over another request: few are waiting, or fewer than could begin.
  bool wants_requests() const { return waiting_.size() < std::max<std::size_t>(2, free_slots_.size()); }
  // Throws std::invalid_argument when the request could never run (empty, longer than n_positions or than the pool).
  void add(Request request);
  // The next microbatch, or nothing when all work is in flight or the in-flight limit is reached.
  std::optional<Microbatch> next();
  // Tokens of a microbatch that `next` gave out, in any order of ids.
  Progress complete(const TokenBatch& batch);

  bool idle() const { return waiting_.empty() && groups_.empty() && in_flight_.empty(); }
  std::int32_t in_flight() const { return static_cast<std::int32_t>(in_flight_.size()); }
  std::int32_t active() const { return active_; }
  std::int32_t free_pages() const;  // of all shards
  std::int64_t times_put_back() const { return times_put_back_; }  // how often a sequence was
  std::int64_t shared_rows() const { return shared_rows_; }        // prompt rows of earlier prompts' pages

 private:
  struct Group;
  // Who comes first: order of the group, then -1 for its holder and the number of the sample in it.
  using Rank = std::pair<std::int64_t, std::int32_t>;
  // A sample, or the holder of its group's prompt.
  struct Sequence {
    Group* group = nullptr;
    Rank rank;
    Sample sample;
    StopStrings stop;
    std::int32_t slot = -1;           // -1: put back
    std::int32_t fed = 0;             // positions handed out or taken over
    std::int32_t awaited = 0;         // rows in flight that get an answer
    std::int32_t scores = 0;          // that have come
    std::int32_t forked_pages = 0;    // of the holder, at the beginning
    std::vector<std::int32_t> pages;  // then these
    std::int32_t first_shard = 0;     // that its pages are dealt out from
    std::int32_t announced = 0;       // of these, in the slot's table
    std::int32_t remembered = 0;      // of these, known to the pool
    bool decodes = false;             // all but the next token is fed
    bool in_current = false;          // has rows in the microbatch that is being made

    bool holds() const { return rank.second < 0; }
    std::int32_t have_pages() const { return forked_pages + static_cast<std::int32_t>(pages.size()); }
  };
  // An admitted request.
  struct Group {
    Request request;
    std::int64_t order = 0;
    std::int32_t started = 0, finished = 0;  // samples
    std::unique_ptr<Sequence> holder;
    std::map<std::int32_t, std::unique_ptr<Sequence>> samples;  // started, not finished
    bool prompt_ready = true;                                   // the holder's rows have all left

    std::int32_t prompt() const { return static_cast<std::int32_t>(request.tokens.size()); }
    bool scores() const { return request.score_from > 0; }
  };
  struct Awaited {
    Sequence* sequence;
    std::int32_t slot, position;
  };

  // Who runs, in scheduler_pages.cpp.
  void admit();
  bool open_front();
  bool start_sample(Group& group);
  bool place(Sequence& sequence);
  bool find_pages(Sequence& sequence);
  std::int32_t freest_shard() const;
  std::int32_t next_shard(const Sequence& sequence) const;
  std::int32_t between(const Sequence& sequence, std::int32_t from, std::int32_t to, std::int32_t shard) const;
  void promise(const Sequence& sequence, std::int32_t sign);
  void fork(Sequence& sequence);
  bool can_grow(Sequence& sequence);
  void put_back(Sequence& sequence);
  void leave_slot(Sequence& sequence);
  void give_back_pages(Sequence& sequence);
  Sequence* last_after(const Sequence& sequence, bool with_slot) const;
  static bool is_sharer(const Sequence& sequence) { return sequence.group->holder && !sequence.holds(); }
  void announce_pages(Sequence& sequence, std::int32_t positions, std::vector<SlotCommand>& commands);
  void remember_prompt(Sequence& sequence);
  std::int32_t most_pages(const Sequence& sequence) const;
  std::int32_t feed_end(const Sequence& sequence) const;

  // What they feed and get.
  std::int32_t chunk_room(std::int32_t position) const;
  std::int32_t prompt_budget(std::int32_t decode_rows) const;
  std::int32_t decode_share() const {
    const std::int32_t split = limits_.decode_split > 0 ? limits_.decode_split : limits_.in_flight;
    return (decoding_ + split - 1) / split;
  }
  std::int32_t token_at(const Sequence& sequence, std::int32_t position) const;
  void set_sampling(const Sequence& sequence);
  void add_row(Sequence& sequence, std::int32_t position, Microbatch& microbatch);
  void add_decode_rows(Microbatch& microbatch);
  void add_prompt_rows(Microbatch& microbatch);
  void note_in_flight(const Microbatch& microbatch);
  void prompt_fed(Sequence& sequence);
  void take_token(Sequence& sequence, const PickedToken& picked, Progress& progress);
  void take_score(Sequence& sequence, const PickedToken& picked, std::int32_t position, Progress& progress);
  void finish(Sequence& sequence, FinishReason reason, Progress& progress);
  void close(Group& group);

  SchedulerLimits limits_;
  TokenBytes token_bytes_;
  std::uint64_t next_id_ = 1;
  std::int64_t next_order_ = 0;
  std::deque<Request> waiting_;
  std::list<Group> groups_;  // admitted, not finished, in order
  std::vector<std::int32_t> free_slots_, free_holders_;
  std::vector<Sequence*> in_slot_;  // [slot]
  PagePool pool_;
  std::map<Rank, Sequence*> running_, put_back_;
  std::map<Rank, Sequence*> feeding_;  // of those that run, with prompt rows left
  std::int64_t feeding_rows_ = 0;      // all of these
  std::deque<Sequence*> ready_;        // whose next decode row may go
  std::vector<std::int64_t> promised_pages_;  // [shard] that those who run may still ask for
  std::int32_t active_ = 0;            // samples that run
  std::int32_t decoding_ = 0;          // of these, past their prompt
  std::int64_t times_put_back_ = 0, shared_rows_ = 0;
  bool held_up_ = false;               // somebody wanted a page and there was none
  std::vector<SlotCommand> commands_;  // for the next microbatch, before those of its rows
  std::unordered_map<std::uint64_t, std::vector<Awaited>> in_flight_;  // id -> rows that get an answer
};

}  // namespace stagecoach
