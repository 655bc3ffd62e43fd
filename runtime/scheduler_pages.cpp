// Scheduler: who runs, with which slot and pages.
#include <algorithm>
#include <utility>

#include "runtime/context_shards.hpp"
#include "runtime/kv_cache.hpp"
#include "runtime/scheduler.hpp"

namespace stagecoach {

// In order: nothing overtakes a request or sample that waits for pages or a slot, but for samples whose prompt is on
// its way.
void Scheduler::admit() {
  while (true) {
    const auto unstarted = std::ranges::find_if(
        groups_, [](const Group& group) { return group.prompt_ready && group.started < group.request.num_samples; });
    const bool back_first =
        !put_back_.empty() &&
        (unstarted == groups_.end() || put_back_.begin()->first < Rank{unstarted->order, unstarted->started});
    if (back_first) {
      if (!place(*put_back_.begin()->second)) return;
    } else if (unstarted != groups_.end()) {
      if (!start_sample(*unstarted)) return;
    } else if (waiting_.empty() || !open_front()) {
      return;
    }
  }
}

// Makes a group of the request that waits longest.
bool Scheduler::open_front() {
  if (free_slots_.empty()) return false;
  const bool shares = waiting_.front().num_samples > 1 && waiting_.front().tokens.size() > 1;
  Group& group = groups_.emplace_back();
  group.request = std::move(waiting_.front());
  group.order = next_order_;
  bool placed = false;
  if (shares) {
    group.holder = std::make_unique<Sequence>();
    group.holder->group = &group;
    group.holder->rank = {group.order, -1};
    group.prompt_ready = false;
    placed = place(*group.holder);
  } else {
    placed = start_sample(group);
  }
  if (placed) {
    waiting_.pop_front();
    ++next_order_;
    return true;
  }
  waiting_.front() = std::move(group.request);
  groups_.pop_back();
  return false;
}

bool Scheduler::start_sample(Group& group) {
  auto sequence = std::make_unique<Sequence>();
  sequence->group = &group;
  sequence->rank = {group.order, group.started};
  sequence->stop = StopStrings(group.request.stop);
  sequence->sample.index = group.request.index;
  sequence->sample.sample = group.request.first_sample + group.started;
  sequence->sample.prompt_tokens = group.prompt();
  if (group.scores()) {
    sequence->sample.logprobs.resize(static_cast<std::size_t>(group.prompt() - group.request.score_from));
  }
  if (!place(*sequence)) return false;
  group.samples.emplace(group.started++, std::move(sequence));
  return true;
}

// Positions that it feeds before it decodes: all whose tokens are known and needed.
std::int32_t Scheduler::feed_end(const Sequence& sequence) const {
  const Group& group = *sequence.group;
  if (sequence.holds() || group.scores()) return group.prompt() - 1;
  return group.prompt() + static_cast<std::int32_t>(sequence.sample.tokens.size());
}

// With those of its holder.
std::int32_t Scheduler::most_pages(const Sequence& sequence) const {
  if (sequence.holds()) return pages_for(feed_end(sequence));
  return pages_for(positions_needed(sequence.group->request, limits_.n_positions));
}

// Who came last, if after `sequence` and not in the microbatch that is being made, nor the holder of pages that
// somebody in it reads; null when there is none.
Scheduler::Sequence* Scheduler::last_after(const Sequence& sequence, bool with_slot) const {
  const Group* read = nullptr;  // samples stand before their holder here
  for (auto it = running_.rbegin(); it != running_.rend() && it->first > sequence.rank; ++it) {
    Sequence& last = *it->second;
    if (last.in_current) {
      read = last.group;
    } else if (!last.holds() || (!with_slot && last.group != read)) {
      return &last;
    }
  }
  return nullptr;
}

// Gives it a slot and pages for what it feeds first. False when it has to wait.
bool Scheduler::place(Sequence& sequence) {
  std::vector<std::int32_t>& slots = sequence.holds() ? free_holders_ : free_slots_;
  if (sequence.awaited > 0 || (!sequence.holds() && !sequence.group->prompt_ready)) return false;
  if (slots.empty() && held_up_ && !sequence.holds()) {  // who has the slots may wait for pages of this one's prompt
    if (Sequence* last = last_after(sequence, true)) put_back(*last);
  }
  if (slots.empty() || !find_pages(sequence)) return false;
  sequence.slot = slots.back();
  slots.pop_back();
  in_slot_[static_cast<std::size_t>(sequence.slot)] = &sequence;
  if (is_sharer(sequence)) fork(sequence);
  set_sampling(sequence);
  put_back_.erase(sequence.rank);
  running_.emplace(sequence.rank, &sequence);
  promise(sequence, 1);
  if (!sequence.holds()) ++active_;
  const std::int32_t rows = feed_end(sequence) - sequence.fed;
  feeding_rows_ += rows;
  if (rows > 0) {
    feeding_.emplace(sequence.rank, &sequence);
  } else {  // all of it was known; samples are going to fork from it
    announce_pages(sequence, sequence.fed, commands_);
    prompt_fed(sequence);
  }
  return true;
}

// Those of its holder or of earlier prompts, and new ones: with a page to spare for each of those who run, unless there
// are enough for all that everybody may come to. Whoever came later makes room.
bool Scheduler::find_pages(Sequence& sequence) {
  const Group& group = *sequence.group;
  const std::int32_t end = feed_end(sequence);
  sequence.first_shard = freest_shard();
  if (is_sharer(sequence)) {
    sequence.first_shard = group.holder->first_shard;
    sequence.fed = group.prompt() - 1;
    sequence.forked_pages = sequence.fed / kPagePositions;
  } else if (group.request.sampling.repetition_penalty == 1.0) {
    // Rows that are to get an answer are fed in any case.
    const std::int32_t known = group.scores()     ? group.request.score_from - 1
                               : sequence.holds() ? end
                                                  : std::min(end - 1, group.prompt());
    sequence.pages = pool_.find(group.request.tokens, known / kPagePositions);
    sequence.fed = sequence.have_pages() * kPagePositions;
    if (!sequence.pages.empty()) sequence.first_shard = shard_of_page(sequence.pages.front(), limits_.shards);
  }
  sequence.remembered = static_cast<std::int32_t>(sequence.pages.size());
  // Whether every shard has pages for up to `pages` of the sequence's, and `spare` more.
  const auto room_for = [&](std::int32_t pages, const auto& spare) {
    for (std::int32_t shard = 0; shard < limits_.shards; ++shard) {
      if (pool_.free(shard) < between(sequence, sequence.have_pages(), pages, shard) + spare(shard)) return false;
    }
    return true;
  };
  const auto none = [](std::int32_t) { return 0; };
  const bool enough = room_for(most_pages(sequence),
                               [&](std::int32_t shard) { return promised_pages_[static_cast<std::size_t>(shard)]; }) ||
                      room_for(pages_for(end), [&](std::int32_t) { return active_; });
  const bool others_later = last_after(sequence, false) != nullptr;
  while (!enough && !room_for(pages_for(end), none)) {
    Sequence* last = last_after(sequence, false);
    if (last == nullptr) break;
    put_back(*last);
  }
  if (!enough && (!others_later || !room_for(pages_for(end), none))) {
    give_back_pages(sequence);
    return false;
  }
  while (sequence.have_pages() < pages_for(end)) sequence.pages.push_back(pool_.take(next_shard(sequence)));
  shared_rows_ += is_sharer(sequence) ? 0 : sequence.fed;
  return true;
}

// Where a sequence begins: with the most pages that nobody may ask for.
std::int32_t Scheduler::freest_shard() const {
  std::int32_t best = 0;
  const auto left = [&](std::int32_t shard) {
    return pool_.free(shard) - promised_pages_[static_cast<std::size_t>(shard)];
  };
  for (std::int32_t shard = 1; shard < limits_.shards; ++shard) {
    if (left(shard) > left(best)) best = shard;
  }
  return best;
}

// Of its next page.
std::int32_t Scheduler::next_shard(const Sequence& sequence) const {
  return shard_of_index(sequence.have_pages(), sequence.first_shard, limits_.shards);
}

// Of its pages from `from` to before `to`, those of a shard.
std::int32_t Scheduler::between(const Sequence& sequence, std::int32_t from, std::int32_t to,
                                std::int32_t shard) const {
  const auto up_to = [&](std::int32_t pages) {
    return pages_of_shard(pages, shard, sequence.first_shard, limits_.shards);
  };
  return up_to(to) - up_to(from);
}

// Pages that it may still ask for are promised to it, or no longer.
void Scheduler::promise(const Sequence& sequence, std::int32_t sign) {
  for (std::int32_t shard = 0; shard < limits_.shards; ++shard) {
    promised_pages_[static_cast<std::size_t>(shard)] +=
        sign * between(sequence, sequence.have_pages(), most_pages(sequence), shard);
  }
}

// A sample of a shared prompt takes over the holder's pages.
void Scheduler::fork(Sequence& sequence) {
  const Sequence& holder = *sequence.group->holder;
  SlotCommand fork{SlotCommand::Kind::kFork, sequence.slot};
  fork.source = holder.slot;
  fork.count = sequence.forked_pages;
  commands_.push_back(std::move(fork));
  if (sequence.fed % kPagePositions == 0) return;
  announce_pages(sequence, sequence.fed, commands_);
  SlotCommand copy{SlotCommand::Kind::kCopyPage, sequence.slot};
  copy.source = holder.pages.back();
  commands_.push_back(std::move(copy));
}

// Whether it has, or gets now, a page for the next position.
bool Scheduler::can_grow(Sequence& sequence) {
  if (pages_for(std::int64_t{sequence.fed} + 1) <= sequence.have_pages()) return true;
  const std::int32_t shard = next_shard(sequence);
  while (pool_.free(shard) == 0) {
    Sequence* last = last_after(sequence, false);
    if (last == nullptr) return false;
    put_back(*last);
  }
  sequence.pages.push_back(pool_.take(shard));
  --promised_pages_[static_cast<std::size_t>(shard)];
  return true;
}

// The slot's table grows with what is fed, so that no header is long.
void Scheduler::announce_pages(Sequence& sequence, std::int32_t positions, std::vector<SlotCommand>& commands) {
  const std::int32_t end = pages_for(positions) - sequence.forked_pages;
  if (end <= sequence.announced) return;
  SlotCommand command{SlotCommand::Kind::kAppendPages, sequence.slot};
  command.pages.assign(sequence.pages.begin() + sequence.announced, sequence.pages.begin() + end);
  sequence.announced = end;
  commands.push_back(std::move(command));
}

// Full pages of the prompt that have left are there for later prompts.
void Scheduler::remember_prompt(Sequence& sequence) {
  if (is_sharer(sequence)) return;
  const std::int32_t full = std::min(sequence.fed, sequence.group->prompt()) / kPagePositions;
  for (; sequence.remembered < full; ++sequence.remembered) {
    pool_.remember(sequence.group->request.tokens, sequence.pages, sequence.remembered);
  }
}

void Scheduler::put_back(Sequence& sequence) {
  leave_slot(sequence);
  put_back_.emplace(sequence.rank, &sequence);
  ++times_put_back_;
}

void Scheduler::leave_slot(Sequence& sequence) {
  promise(sequence, -1);
  if (!sequence.holds()) --active_;
  if (std::exchange(sequence.decodes, false)) --decoding_;
  if (feeding_.erase(sequence.rank) > 0) feeding_rows_ -= feed_end(sequence) - sequence.fed;
  std::erase(ready_, &sequence);
  running_.erase(sequence.rank);
  if (sequence.holds()) sequence.group->prompt_ready = false;
  commands_.push_back({SlotCommand::Kind::kDrop, sequence.slot});
  give_back_pages(sequence);
  (sequence.holds() ? free_holders_ : free_slots_).push_back(sequence.slot);
  in_slot_[static_cast<std::size_t>(sequence.slot)] = nullptr;
  sequence.slot = -1;
}

// The last first, so that of a prompt that is still known its beginning stays the longest.
void Scheduler::give_back_pages(Sequence& sequence) {
  while (!sequence.pages.empty()) {
    pool_.give_back(sequence.pages.back());
    sequence.pages.pop_back();
  }
  sequence.fed = sequence.forked_pages = sequence.announced = sequence.remembered = 0;
}

}  // namespace stagecoach
