#include "runtime/scheduler.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

#include "runtime/kv_cache.hpp"

namespace stagecoach {

std::int32_t positions_needed(std::int32_t prompt_tokens, std::int32_t max_new_tokens, std::int32_t n_positions) {
  const std::int64_t wanted = static_cast<std::int64_t>(prompt_tokens) + max_new_tokens - 1;
  return static_cast<std::int32_t>(std::min<std::int64_t>(wanted, n_positions));
}

Scheduler::Scheduler(const SchedulerLimits& limits)
    : limits_(limits), sequences_(static_cast<std::size_t>(limits.slots)), unpromised_pages_(limits.pages) {
  if (limits.slots < 1 || limits.pages < 1 || limits.chunk_tokens < 1 || limits.in_flight < 1) {
    throw std::invalid_argument(fmt::format("scheduler limits: {} slots, {} pages, {} chunk tokens, {} in flight",
                                            limits.slots, limits.pages, limits.chunk_tokens, limits.in_flight));
  }
  // Lowest numbers first, from the back.
  for (std::int32_t slot = limits.slots - 1; slot >= 0; --slot) free_slots_.push_back(slot);
  for (std::int32_t page = limits.pages - 1; page >= 0; --page) free_pages_.push_back(page);
}

void Scheduler::add(Request request) {
  const auto prompt = static_cast<std::int64_t>(request.tokens.size());
  if (prompt < 1 || prompt > limits_.n_positions || request.max_new_tokens < 1) {
    throw std::invalid_argument(fmt::format("request {}: {} prompt tokens and {} new ones; the model has {} positions",
                                            request.index, prompt, request.max_new_tokens, limits_.n_positions));
  }
  const std::int32_t pages =
      pages_for(positions_needed(static_cast<std::int32_t>(prompt), request.max_new_tokens, limits_.n_positions));
  if (pages > limits_.pages) {
    throw std::invalid_argument(
        fmt::format("request {} needs {} KV pages, the pool has {}", request.index, pages, limits_.pages));
  }
  waiting_.push_back(std::move(request));
}

void Scheduler::admit() {
  while (!waiting_.empty() && !free_slots_.empty()) {
    Request& request = waiting_.front();
    const auto prompt = static_cast<std::int32_t>(request.tokens.size());
    const std::int32_t pages = pages_for(positions_needed(prompt, request.max_new_tokens, limits_.n_positions));
    if (pages > unpromised_pages_) return;  // in order: a later, smaller request does not overtake
    unpromised_pages_ -= pages;
    const std::int32_t slot = free_slots_.back();
    free_slots_.pop_back();
    Sequence& sequence = at(slot);
    sequence = Sequence{};
    sequence.used = true;
    sequence.pages_promised = pages;
    sequence.sample.index = request.index;
    sequence.sample.prompt_tokens = prompt;
    sequence.request = std::move(request);
    waiting_.pop_front();
    prefilling_.push_back(slot);
    ++active_;
  }
}

void Scheduler::append_pages(std::int32_t slot, std::int32_t positions, Microbatch& microbatch) {
  Sequence& sequence = at(slot);
  const std::int32_t missing = pages_for(positions) - static_cast<std::int32_t>(sequence.pages.size());
  if (missing <= 0) return;
  SlotCommand command{SlotCommand::Kind::kAppendPages, slot, {}};
  for (std::int32_t i = 0; i < missing; ++i) {
    command.pages.push_back(free_pages_.back());
    free_pages_.pop_back();
  }
  sequence.pages.insert(sequence.pages.end(), command.pages.begin(), command.pages.end());
  microbatch.commands.push_back(std::move(command));
}

std::uint32_t Scheduler::sample_flags(const Sequence& sequence) const {
  return kRowSample | (sequence.request.logprobs ? kRowLogprob : 0U);
}

std::optional<Microbatch> Scheduler::next() {
  if (in_flight() >= limits_.in_flight) return std::nullopt;
  admit();
  Microbatch microbatch;
  if (!limits_.hold_decode || prefilling_.empty()) add_decode_rows(microbatch);
  add_prefill_rows(microbatch);
  if (microbatch.rows.empty()) return std::nullopt;
  microbatch.id = next_id_++;
  microbatch.commands.insert(microbatch.commands.begin(), drops_.begin(), drops_.end());
  drops_.clear();
  std::vector<std::int32_t>& slots = in_flight_[microbatch.id];
  for (const Row& row : microbatch.rows) {
    if ((row.flags & kRowSample) != 0) slots.push_back(row.slot);
  }
  return microbatch;
}

// An equal share of the decoding sequences, so that all microbatches in flight cost about the same.
void Scheduler::add_decode_rows(Microbatch& microbatch) {
  std::int32_t share = (decoding_ + limits_.in_flight - 1) / limits_.in_flight;
  for (; share > 0 && !ready_.empty(); --share) {
    const std::int32_t slot = ready_.front();
    ready_.pop_front();
    Sequence& sequence = at(slot);
    const auto position = static_cast<std::int32_t>(sequence.request.tokens.size() + sequence.sample.tokens.size()) - 1;
    append_pages(slot, position + 1, microbatch);
    microbatch.rows.push_back({sequence.last_token, slot, position, sample_flags(sequence)});
  }
}

void Scheduler::add_prefill_rows(Microbatch& microbatch) {
  std::int32_t budget = limits_.chunk_tokens;
  while (budget > 0 && !prefilling_.empty()) {
    const std::int32_t slot = prefilling_.front();
    Sequence& sequence = at(slot);
    const auto prompt = static_cast<std::int32_t>(sequence.request.tokens.size());
    const std::int32_t end = std::min(prompt, sequence.prefilled + budget);
    append_pages(slot, end, microbatch);
    for (std::int32_t p = sequence.prefilled; p < end; ++p) {
      microbatch.rows.push_back({sequence.request.tokens[static_cast<std::size_t>(p)], slot, p, 0});
    }
    budget -= end - sequence.prefilled;
    sequence.prefilled = end;
    if (end < prompt) return;
    microbatch.rows.back().flags = sample_flags(sequence);
    prefilling_.pop_front();
    ++decoding_;
  }
}

Scheduler::Progress Scheduler::complete(const TokenBatch& batch) {
  const auto found = in_flight_.find(batch.id);
  if (found == in_flight_.end())
    throw WireError(fmt::format("tokens for microbatch {}, which is not in flight", batch.id));
  const std::vector<std::int32_t> slots = std::move(found->second);
  in_flight_.erase(found);
  if (batch.tokens.size() != slots.size()) {
    throw WireError(
        fmt::format("microbatch {} asked for {} tokens, {} came", batch.id, slots.size(), batch.tokens.size()));
  }
  Progress progress;
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const PickedToken& picked = batch.tokens[i];
    if (picked.slot != slots[i]) {
      throw WireError(
          fmt::format("microbatch {}: token {} is of slot {}, expected {}", batch.id, i, picked.slot, slots[i]));
    }
    Sequence& sequence = at(picked.slot);
    Sample& sample = sequence.sample;
    sample.tokens.push_back(picked.token);
    if (sequence.request.logprobs) sample.logprobs.push_back(picked.logprob);
    sequence.last_token = picked.token;
    progress.tokens.push_back({sample.index, picked.token});
    const auto length = static_cast<std::int32_t>(sequence.request.tokens.size() + sample.tokens.size());
    if (picked.token == limits_.eos && !sequence.request.ignore_eos) {
      finish(picked.slot, FinishReason::kEos, progress);
    } else if (static_cast<std::int32_t>(sample.tokens.size()) >= sequence.request.max_new_tokens ||
               length > limits_.n_positions) {  // the newest token has no position left to be fed at
      finish(picked.slot, FinishReason::kLength, progress);
    } else {
      ready_.push_back(picked.slot);
    }
  }
  return progress;
}

void Scheduler::finish(std::int32_t slot, FinishReason reason, Progress& progress) {
  Sequence& sequence = at(slot);
  sequence.sample.finish = reason;
  progress.finished.push_back({std::move(sequence.request), std::move(sequence.sample)});
  free_pages_.insert(free_pages_.end(), sequence.pages.rbegin(), sequence.pages.rend());
  unpromised_pages_ += sequence.pages_promised;
  drops_.push_back({SlotCommand::Kind::kDrop, slot, {}});
  sequence = Sequence{};
  free_slots_.push_back(slot);
  --active_;
  --decoding_;
}

}  // namespace stagecoach
