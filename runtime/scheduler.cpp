#include "runtime/scheduler.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

#include "runtime/context_shards.hpp"
#include "runtime/kv_cache.hpp"

namespace stagecoach {
namespace {

std::int32_t prompt_size(const Request& request) {
  return static_cast<std::int32_t>(request.tokens.size());
}

// Prompt tokens that samples share, in a slot of their own: all but the last, which each sample feeds itself.
std::int32_t shared_positions(const Request& request) {
  return request.num_samples > 1 ? prompt_size(request) - 1 : 0;
}

bool is_plain_greedy(const SamplingOptions& options) {
  return options.temperature == 0.0 && options.repetition_penalty == 1.0;
}

// While others decode, prompt rows that wait are spread over the microbatches of so many rounds, which makes those
// alike, in pieces no shorter than this part of a chunk.
constexpr std::int32_t kRoundsOfPrompts = 6;
constexpr std::int32_t kLeastOfChunk = 32;

}  // namespace

std::int32_t positions_needed(const Request& request, std::int32_t n_positions) {
  const std::int64_t fed = request.score_from > 0 ? std::int64_t{prompt_size(request)} - 1
                                                  : std::int64_t{prompt_size(request)} + request.max_new_tokens - 1;
  return static_cast<std::int32_t>(std::min<std::int64_t>(fed, n_positions));
}

std::int32_t pages_needed(const Request& request, std::int32_t n_positions, std::int32_t shards) {
  std::int32_t most = 0;
  for (std::int32_t shard = 0; shard < shards; ++shard) {
    const auto up_to = [&](std::int32_t pages) { return pages_of_shard(pages, shard, 0, shards); };
    const std::int32_t own = up_to(pages_for(positions_needed(request, n_positions))) -
                             up_to(shared_positions(request) / kPagePositions);  // a sample shares full pages only
    most = std::max(most, up_to(pages_for(shared_positions(request))) + own);
  }
  return most;
}

std::int32_t Scheduler::free_pages() const {
  std::int32_t free = 0;
  for (std::int32_t shard = 0; shard < limits_.shards; ++shard) free += pool_.free(shard);
  return free;
}

Scheduler::Scheduler(const SchedulerLimits& limits, TokenBytes token_bytes)
    : limits_(limits),
      token_bytes_(std::move(token_bytes)),
      in_slot_(static_cast<std::size_t>(std::max(0, limits.tables()))),
      pool_(std::max(0, limits.pages), std::max(1, limits.shards)),
      promised_pages_(static_cast<std::size_t>(std::max(1, limits.shards))) {
  if (limits.slots < 1 || limits.pages < 1 || limits.chunk_tokens < 1 || limits.in_flight < 1 || limits.shards < 1) {
    throw std::invalid_argument(
        fmt::format("scheduler limits: {} slots, {} pages, {} chunk tokens, {} in flight, {} shards", limits.slots,
                    limits.pages, limits.chunk_tokens, limits.in_flight, limits.shards));
  }
  for (const std::int32_t length : limits.chunks) {
    if (length >= 1 && length <= limits.chunk_tokens) continue;
    throw std::invalid_argument(fmt::format("a chunk of {} tokens, at most {} travel", length, limits.chunk_tokens));
  }
  // Lowest numbers first, from the back.
  for (std::int32_t slot = limits.slots - 1; slot >= 0; --slot) {
    free_slots_.push_back(slot);
    free_holders_.push_back(limits.slots + slot);
  }
}

void Scheduler::add(Request request) {
  const std::int32_t prompt = prompt_size(request);
  const bool scores = request.score_from > 0;
  if (request.tokens.empty() || request.tokens.size() > static_cast<std::size_t>(limits_.n_positions) ||
      (scores ? request.score_from >= prompt || request.num_samples != 1
              : request.max_new_tokens < 1 || request.num_samples < 1)) {
    throw std::invalid_argument(fmt::format(
        "request {}: {} prompt tokens, {} new ones, {} samples, scores from {}; the model has {} positions",
        request.index, prompt, request.max_new_tokens, request.num_samples, request.score_from, limits_.n_positions));
  }
  if (const std::int32_t pages = pages_needed(request, limits_.n_positions, limits_.shards); pages > limits_.pages) {
    throw std::invalid_argument(
        fmt::format("request {} needs {} KV pages, the pool has {}", request.index, pages, limits_.pages));
  }
  if (!request.stop.empty() && !token_bytes_) {
    throw std::invalid_argument(fmt::format("request {} has stop strings, but tokens have no text", request.index));
  }
  waiting_.push_back(std::move(request));
}

std::optional<Microbatch> Scheduler::next() {
  if (in_flight() >= limits_.in_flight) return std::nullopt;
  admit();
  Microbatch microbatch;
  if (!limits_.hold_decode || feeding_.empty()) add_decode_rows(microbatch);
  add_prompt_rows(microbatch);
  if (microbatch.rows.empty()) return std::nullopt;
  microbatch.id = next_id_++;
  microbatch.commands.insert(microbatch.commands.begin(), commands_.begin(), commands_.end());
  commands_.clear();
  note_in_flight(microbatch);
  return microbatch;
}

void Scheduler::note_in_flight(const Microbatch& microbatch) {
  std::vector<Awaited>& awaited = in_flight_[microbatch.id];
  for (const Row& row : microbatch.rows) {
    Sequence& sequence = *in_slot_[static_cast<std::size_t>(row.slot)];
    if (sequence.in_current) remember_prompt(sequence);
    sequence.in_current = false;
    if (!wants_logits(row)) continue;
    ++sequence.awaited;
    awaited.push_back({&sequence, row.slot, row.position});
  }
}

// An equal share of the decoding sequences, so that all microbatches in flight cost about the same.
void Scheduler::add_decode_rows(Microbatch& microbatch) {
  std::int32_t share = decode_share();
  std::deque<Sequence*> no_page;
  while (share > 0 && !ready_.empty()) {
    Sequence& sequence = *ready_.front();
    ready_.pop_front();
    if (!can_grow(sequence)) {
      no_page.push_back(&sequence);
      continue;
    }
    --share;
    announce_pages(sequence, sequence.fed + 1, microbatch.commands);
    add_row(sequence, sequence.fed++, microbatch);
  }
  std::erase_if(no_page, [](const Sequence* sequence) { return !sequence->decodes; });  // put back meanwhile
  held_up_ = !no_page.empty();
  ready_.insert(ready_.begin(), no_page.begin(), no_page.end());
}

// Rows from `position` to the end of its chunk.
std::int32_t Scheduler::chunk_room(std::int32_t position) const {
  if (limits_.chunks.empty()) return limits_.chunk_tokens;
  return static_cast<std::int32_t>(chunk_end(limits_.chunks, position) - position);
}

// Prompt rows for a microbatch that has `decode_rows` already: a part of those that wait, and what it lacks of its
// share of decode rows.
std::int32_t Scheduler::prompt_budget(std::int32_t decode_rows) const {
  if (decoding_ == 0 || limits_.in_flight == 1 || limits_.hold_decode) return limits_.chunk_tokens;
  const std::int64_t spread = std::int64_t{kRoundsOfPrompts} * limits_.in_flight;
  const std::int64_t rows = (feeding_rows_ + spread - 1) / spread + std::max(0, decode_share() - decode_rows);
  const std::int32_t least = std::max(1, limits_.chunk_tokens / kLeastOfChunk);
  return static_cast<std::int32_t>(std::clamp<std::int64_t>(rows, least, limits_.chunk_tokens));
}

void Scheduler::add_prompt_rows(Microbatch& microbatch) {
  std::int32_t budget = prompt_budget(static_cast<std::int32_t>(microbatch.rows.size()));
  while (budget > 0 && !feeding_.empty()) {
    Sequence& sequence = *feeding_.begin()->second;
    const std::int32_t end = feed_end(sequence);
    const std::int32_t stop = std::min(end, sequence.fed + std::min(budget, chunk_room(sequence.fed)));
    announce_pages(sequence, stop, microbatch.commands);
    budget -= stop - sequence.fed;
    feeding_rows_ -= stop - sequence.fed;
    while (sequence.fed < stop) add_row(sequence, sequence.fed++, microbatch);
    if (stop < end) return;
    feeding_.erase(sequence.rank);
    prompt_fed(sequence);
  }
}

void Scheduler::prompt_fed(Sequence& sequence) {
  if (sequence.holds()) {
    sequence.group->prompt_ready = true;
  } else if (!sequence.group->scores()) {
    sequence.decodes = true;
    ++decoding_;
  }
}

// Of the prompt and what was generated after it.
std::int32_t Scheduler::token_at(const Sequence& sequence, std::int32_t position) const {
  const std::int32_t prompt = sequence.group->prompt();
  return position < prompt ? sequence.group->request.tokens[static_cast<std::size_t>(position)]
                           : sequence.sample.tokens[static_cast<std::size_t>(position - prompt)];
}

void Scheduler::add_row(Sequence& sequence, std::int32_t position, Microbatch& microbatch) {
  const Group& group = *sequence.group;
  Row row{token_at(sequence, position), sequence.slot, position, 0};
  if (group.scores()) {
    if (position + 1 >= group.request.score_from + sequence.scores) {
      row.flags = kRowScore;
      row.target = token_at(sequence, position + 1);
    }
  } else if (!sequence.holds() &&
             position + 1 == group.prompt() + static_cast<std::int32_t>(sequence.sample.tokens.size())) {
    row.flags = kRowSample | (group.request.logprobs ? kRowLogprob : 0U);
  }
  sequence.in_current = true;
  microbatch.rows.push_back(row);
}

void Scheduler::set_sampling(const Sequence& sequence) {
  const Request& request = sequence.group->request;
  if (is_plain_greedy(request.sampling)) return;
  SlotCommand command{SlotCommand::Kind::kSampling, sequence.slot};
  command.sampling = {request.sampling, request.seed, static_cast<std::uint32_t>(sequence.sample.sample)};
  commands_.push_back(std::move(command));
}

Scheduler::Progress Scheduler::complete(const TokenBatch& batch) {
  const auto found = in_flight_.find(batch.id);
  if (found == in_flight_.end())
    throw WireError(fmt::format("tokens for microbatch {}, which is not in flight", batch.id));
  const std::vector<Awaited> awaited = std::move(found->second);
  in_flight_.erase(found);
  if (batch.tokens.size() != awaited.size()) {
    throw WireError(
        fmt::format("microbatch {} asked for {} tokens, {} came", batch.id, awaited.size(), batch.tokens.size()));
  }
  Progress progress;
  for (std::size_t i = 0; i < awaited.size(); ++i) {
    const PickedToken& picked = batch.tokens[i];
    if (picked.slot != awaited[i].slot) {
      throw WireError(
          fmt::format("microbatch {}: token {} is of slot {}, expected {}", batch.id, i, picked.slot, awaited[i].slot));
    }
    Sequence& sequence = *awaited[i].sequence;
    --sequence.awaited;
    if (sequence.group->scores()) {
      take_score(sequence, picked, awaited[i].position, progress);
    } else {
      take_token(sequence, picked, progress);
    }
  }
  return progress;
}

void Scheduler::take_token(Sequence& sequence, const PickedToken& picked, Progress& progress) {
  const Request& request = sequence.group->request;
  Sample& sample = sequence.sample;
  sample.tokens.push_back(picked.token);
  if (request.logprobs) sample.logprobs.push_back(picked.logprob);
  progress.tokens.push_back({sample.index, picked.token, sample.sample});
  const std::int32_t length = sequence.group->prompt() + static_cast<std::int32_t>(sample.tokens.size());
  if (picked.token == limits_.eos && !request.ignore_eos) {
    finish(sequence, FinishReason::kEos, progress);
    return;
  }
  if (!request.stop.empty()) {
    sequence.stop.push(token_bytes_(picked.token));
    if (sequence.stop.stopped()) {
      sample.text_bytes = sequence.stop.text_bytes();
      finish(sequence, FinishReason::kStop, progress);
      return;
    }
  }
  if (static_cast<std::int32_t>(sample.tokens.size()) >= request.max_new_tokens ||
      length > limits_.n_positions) {  // the newest token has no position left to be fed at
    finish(sequence, FinishReason::kLength, progress);
  } else if (sequence.decodes) {
    ready_.push_back(&sequence);
  }
}

void Scheduler::take_score(Sequence& sequence, const PickedToken& picked, std::int32_t position, Progress& progress) {
  const std::int32_t index = position + 1 - sequence.group->request.score_from;
  std::vector<float>& scores = sequence.sample.logprobs;
  scores[static_cast<std::size_t>(index)] = picked.logprob;
  if (++sequence.scores == static_cast<std::int32_t>(scores.size())) finish(sequence, FinishReason::kLength, progress);
}

void Scheduler::finish(Sequence& sequence, FinishReason reason, Progress& progress) {
  Group& group = *sequence.group;
  sequence.sample.finish = reason;
  progress.finished.push_back(std::move(sequence.sample));
  if (sequence.slot >= 0) {
    leave_slot(sequence);
  } else {
    put_back_.erase(sequence.rank);
  }
  group.samples.erase(sequence.rank.second);
  if (++group.finished == group.request.num_samples) close(group);
}

void Scheduler::close(Group& group) {
  if (group.holder && group.holder->slot >= 0) leave_slot(*group.holder);
  if (group.holder) put_back_.erase(group.holder->rank);
  groups_.remove_if([&group](const Group& other) { return &other == &group; });
}

}  // namespace stagecoach
