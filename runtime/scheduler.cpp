#include "runtime/scheduler.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

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

// A sample shares full pages only.
std::int32_t own_pages(const Request& request, std::int32_t n_positions) {
  return pages_for(positions_needed(request, n_positions)) - shared_positions(request) / kPagePositions;
}

bool is_plain_greedy(const SamplingOptions& options) {
  return options.temperature == 0.0 && options.repetition_penalty == 1.0;
}

}  // namespace

std::int32_t positions_needed(const Request& request, std::int32_t n_positions) {
  const std::int64_t fed = request.score_from > 0 ? std::int64_t{prompt_size(request)} - 1
                                                  : std::int64_t{prompt_size(request)} + request.max_new_tokens - 1;
  return static_cast<std::int32_t>(std::min<std::int64_t>(fed, n_positions));
}

std::int32_t pages_needed(const Request& request, std::int32_t n_positions) {
  return pages_for(shared_positions(request)) + own_pages(request, n_positions);
}

Scheduler::Scheduler(const SchedulerLimits& limits, TokenBytes token_bytes)
    : limits_(limits),
      token_bytes_(std::move(token_bytes)),
      sequences_(static_cast<std::size_t>(limits.tables())),
      unpromised_pages_(limits.pages) {
  if (limits.slots < 1 || limits.pages < 1 || limits.chunk_tokens < 1 || limits.in_flight < 1) {
    throw std::invalid_argument(fmt::format("scheduler limits: {} slots, {} pages, {} chunk tokens, {} in flight",
                                            limits.slots, limits.pages, limits.chunk_tokens, limits.in_flight));
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
  for (std::int32_t page = limits.pages - 1; page >= 0; --page) free_pages_.push_back(page);
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
  if (const std::int32_t pages = pages_needed(request, limits_.n_positions); pages > limits_.pages) {
    throw std::invalid_argument(
        fmt::format("request {} needs {} KV pages, the pool has {}", request.index, pages, limits_.pages));
  }
  if (!request.stop.empty() && !token_bytes_) {
    throw std::invalid_argument(fmt::format("request {} has stop strings, but tokens have no text", request.index));
  }
  waiting_.push_back(std::move(request));
}

// In order: nothing overtakes a request or sample that waits for pages or a slot. So whoever waits gets on: the pages
// of its first sample were promised at admission, and what its own samples give back only earlier requests can take.
void Scheduler::admit() {
  for (Group& group : groups_) {
    if (group.prompt_ready && !start_samples(group)) return;
  }
  while (!waiting_.empty() && !free_slots_.empty() && admit_front()) {
  }
}

bool Scheduler::admit_front() {
  const std::int32_t shared = shared_positions(waiting_.front());
  const std::int32_t pages = pages_needed(waiting_.front(), limits_.n_positions);
  if (pages > unpromised_pages_ || (shared > 0 && free_holders_.empty())) return false;
  unpromised_pages_ -= pages;
  Group& group = groups_.emplace_back();
  group.request = std::move(waiting_.front());
  waiting_.pop_front();
  group.sample_pages = own_pages(group.request, limits_.n_positions);
  if (shared == 0) return start_samples(group);
  group.holder = free_holders_.back();
  free_holders_.pop_back();
  group.prompt_ready = false;
  at(group.holder) = Sequence{};
  at(group.holder).group = &group;
  set_sampling(group.holder, group.request, 0);
  prefilling_.push_back(group.holder);
  return true;
}

// As many as slots and pages allow. False when some are left.
bool Scheduler::start_samples(Group& group) {
  while (group.started < group.request.num_samples) {
    if (free_slots_.empty()) return false;
    if (group.started > 0) {
      if (group.sample_pages > unpromised_pages_) return false;
      unpromised_pages_ -= group.sample_pages;
    }
    start_sample(group);
  }
  return true;
}

void Scheduler::start_sample(Group& group) {
  const std::int32_t slot = free_slots_.back();
  free_slots_.pop_back();
  Sequence& sequence = at(slot);
  sequence = Sequence{};
  sequence.group = &group;
  sequence.stop = StopStrings(group.request.stop);
  sequence.sample.index = group.request.index;
  sequence.sample.sample = group.request.first_sample + group.started++;
  sequence.sample.prompt_tokens = group.prompt();
  if (group.scores()) {
    sequence.unscored = group.prompt() - group.request.score_from;
    sequence.sample.logprobs.resize(static_cast<std::size_t>(sequence.unscored));
  }
  if (group.holder >= 0) {
    const std::int32_t shared = shared_positions(group.request);
    sequence.prefilled = shared;
    sequence.shared_pages = shared / kPagePositions;
    SlotCommand fork{SlotCommand::Kind::kFork, slot};
    fork.source = group.holder;
    fork.count = sequence.shared_pages;
    commands_.push_back(std::move(fork));
    if (shared % kPagePositions != 0) {
      append_pages(slot, shared, commands_);
      SlotCommand copy{SlotCommand::Kind::kCopyPage, slot};
      copy.source = at(group.holder).pages.back();
      commands_.push_back(std::move(copy));
    }
  }
  set_sampling(slot, group.request, sequence.sample.sample);
  prefilling_.push_back(slot);
  ++active_;
}

void Scheduler::set_sampling(std::int32_t slot, const Request& request, std::int32_t sample) {
  if (is_plain_greedy(request.sampling)) return;
  SlotCommand command{SlotCommand::Kind::kSampling, slot};
  command.sampling = {request.sampling, request.seed, static_cast<std::uint32_t>(sample)};
  commands_.push_back(std::move(command));
}

void Scheduler::append_pages(std::int32_t slot, std::int32_t positions, std::vector<SlotCommand>& commands) {
  Sequence& sequence = at(slot);
  const std::int32_t have = sequence.shared_pages + static_cast<std::int32_t>(sequence.pages.size());
  const std::int32_t missing = pages_for(positions) - have;
  if (missing <= 0) return;
  SlotCommand command{SlotCommand::Kind::kAppendPages, slot};
  for (std::int32_t i = 0; i < missing; ++i) {
    command.pages.push_back(free_pages_.back());
    free_pages_.pop_back();
  }
  sequence.pages.insert(sequence.pages.end(), command.pages.begin(), command.pages.end());
  commands.push_back(std::move(command));
}

std::optional<Microbatch> Scheduler::next() {
  if (in_flight() >= limits_.in_flight) return std::nullopt;
  admit();
  Microbatch microbatch;
  if (!limits_.hold_decode || prefilling_.empty()) add_decode_rows(microbatch);
  add_prefill_rows(microbatch);
  if (microbatch.rows.empty()) return std::nullopt;
  microbatch.id = next_id_++;
  microbatch.commands.insert(microbatch.commands.begin(), commands_.begin(), commands_.end());
  commands_.clear();
  std::vector<Awaited>& awaited = in_flight_[microbatch.id];
  for (const Row& row : microbatch.rows) {
    if (wants_logits(row)) awaited.push_back({row.slot, row.position});
  }
  return microbatch;
}

// An equal share of the decoding sequences, so that all microbatches in flight cost about the same.
void Scheduler::add_decode_rows(Microbatch& microbatch) {
  std::int32_t share = (decoding_ + limits_.in_flight - 1) / limits_.in_flight;
  for (; share > 0 && !ready_.empty(); --share) {
    const std::int32_t slot = ready_.front();
    ready_.pop_front();
    const Sequence& sequence = at(slot);
    const std::int32_t position =
        sequence.group->prompt() + static_cast<std::int32_t>(sequence.sample.tokens.size()) - 1;
    append_pages(slot, position + 1, microbatch.commands);
    const std::uint32_t flags = kRowSample | (sequence.group->request.logprobs ? kRowLogprob : 0U);
    microbatch.rows.push_back({sequence.last_token, slot, position, flags});
  }
}

// Prompt tokens that the slot feeds, from the first.
std::int32_t Scheduler::prefill_end(std::int32_t slot) const {
  const Group& group = *at(slot).group;
  return is_holder(slot) || group.scores() ? group.prompt() - 1 : group.prompt();
}

// Rows from `position` to the end of its chunk.
std::int32_t Scheduler::chunk_room(std::int32_t position) const {
  if (limits_.chunks.empty()) return limits_.chunk_tokens;
  return static_cast<std::int32_t>(chunk_end(limits_.chunks, position) - position);
}

void Scheduler::add_prefill_rows(Microbatch& microbatch) {
  std::int32_t budget = limits_.chunk_tokens;
  while (budget > 0 && !prefilling_.empty()) {
    const std::int32_t slot = prefilling_.front();
    Sequence& sequence = at(slot);
    const std::int32_t end = prefill_end(slot);
    const std::int32_t stop = std::min(end, sequence.prefilled + std::min(budget, chunk_room(sequence.prefilled)));
    append_pages(slot, stop, microbatch.commands);
    for (std::int32_t p = sequence.prefilled; p < stop; ++p) add_prompt_row(slot, p, microbatch);
    budget -= stop - sequence.prefilled;
    sequence.prefilled = stop;
    if (stop < end) return;
    prefilling_.pop_front();
    if (is_holder(slot)) {
      sequence.group->prompt_ready = true;
    } else if (!sequence.group->scores()) {
      ++decoding_;
    }
  }
}

void Scheduler::add_prompt_row(std::int32_t slot, std::int32_t position, Microbatch& microbatch) const {
  const Group& group = *at(slot).group;
  const std::vector<std::int32_t>& tokens = group.request.tokens;
  Row row{tokens[static_cast<std::size_t>(position)], slot, position, 0};
  if (group.scores()) {
    if (position + 1 >= group.request.score_from) {
      row.flags = kRowScore;
      row.target = tokens[static_cast<std::size_t>(position) + 1];
    }
  } else if (!is_holder(slot) && position + 1 == group.prompt()) {
    row.flags = kRowSample | (group.request.logprobs ? kRowLogprob : 0U);
  }
  microbatch.rows.push_back(row);
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
    if (at(picked.slot).group->scores()) {
      take_score(picked, awaited[i].position, progress);
    } else {
      take_token(picked, progress);
    }
  }
  return progress;
}

void Scheduler::take_token(const PickedToken& picked, Progress& progress) {
  Sequence& sequence = at(picked.slot);
  const Request& request = sequence.group->request;
  Sample& sample = sequence.sample;
  sample.tokens.push_back(picked.token);
  if (request.logprobs) sample.logprobs.push_back(picked.logprob);
  sequence.last_token = picked.token;
  progress.tokens.push_back({sample.index, picked.token, sample.sample});
  const std::int32_t length = sequence.group->prompt() + static_cast<std::int32_t>(sample.tokens.size());
  if (picked.token == limits_.eos && !request.ignore_eos) {
    finish(picked.slot, FinishReason::kEos, progress);
    return;
  }
  if (!request.stop.empty()) {
    sequence.stop.push(token_bytes_(picked.token));
    if (sequence.stop.stopped()) {
      sample.text_bytes = sequence.stop.text_bytes();
      finish(picked.slot, FinishReason::kStop, progress);
      return;
    }
  }
  if (static_cast<std::int32_t>(sample.tokens.size()) >= request.max_new_tokens ||
      length > limits_.n_positions) {  // the newest token has no position left to be fed at
    finish(picked.slot, FinishReason::kLength, progress);
  } else {
    ready_.push_back(picked.slot);
  }
}

void Scheduler::take_score(const PickedToken& picked, std::int32_t position, Progress& progress) {
  Sequence& sequence = at(picked.slot);
  const std::int32_t index = position + 1 - sequence.group->request.score_from;
  sequence.sample.logprobs[static_cast<std::size_t>(index)] = picked.logprob;
  if (--sequence.unscored == 0) finish(picked.slot, FinishReason::kLength, progress);
}

void Scheduler::finish(std::int32_t slot, FinishReason reason, Progress& progress) {
  Sequence& sequence = at(slot);
  Group& group = *sequence.group;
  sequence.sample.finish = reason;
  progress.finished.push_back(std::move(sequence.sample));
  unpromised_pages_ += group.sample_pages;
  if (!group.scores()) --decoding_;
  --active_;
  release(slot);
  free_slots_.push_back(slot);
  if (++group.finished == group.request.num_samples) close(group);
}

void Scheduler::release(std::int32_t slot) {
  Sequence& sequence = at(slot);
  free_pages_.insert(free_pages_.end(), sequence.pages.rbegin(), sequence.pages.rend());
  commands_.push_back({SlotCommand::Kind::kDrop, slot});
  sequence = Sequence{};
}

void Scheduler::close(Group& group) {
  if (group.holder >= 0) {
    unpromised_pages_ += static_cast<std::int32_t>(at(group.holder).pages.size());
    release(group.holder);
    free_holders_.push_back(group.holder);
  }
  groups_.remove_if([&group](const Group& other) { return &other == &group; });
}

}  // namespace stagecoach
