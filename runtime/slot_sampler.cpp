#include "runtime/slot_sampler.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "runtime/random.hpp"

namespace stagecoach {
namespace {

// The random number of the token that follows `row`.
double number_for(const Row& row, const SlotSampling& sampling) {
  return uniform(sampling.seed, sampling.sample, static_cast<std::uint32_t>(row.position) + 1);
}

}  // namespace

SlotSampler::SlotSampler(std::int32_t slots, std::int32_t vocab_size)
    : vocab_size_(vocab_size), slots_(static_cast<std::size_t>(slots)) {}

SlotSampler::Slot& SlotSampler::at(std::int32_t slot) {
  if (slot < 0 || static_cast<std::size_t>(slot) >= slots_.size()) {
    throw WireError(fmt::format("slot {} is outside 0 to {}", slot, slots_.size() - 1));
  }
  return slots_[static_cast<std::size_t>(slot)];
}

void SlotSampler::check_token(std::int32_t token) const {
  if (token >= 0 && token < vocab_size_) return;
  throw WireError(fmt::format("token {} is outside 0 to {}", token, vocab_size_ - 1));
}

void SlotSampler::apply(std::span<const SlotCommand> commands) {
  for (const SlotCommand& command : commands) {
    Slot& slot = at(command.slot);
    switch (command.kind) {
      case SlotCommand::Kind::kDrop:
        slot = {};
        break;
      case SlotCommand::Kind::kFork:
        slot = at(command.source);
        break;
      case SlotCommand::Kind::kSampling:
        slot.sampling = command.sampling;
        if (slot.remembers()) slot.seen.resize(static_cast<std::size_t>(vocab_size_));
        break;
      case SlotCommand::Kind::kAppendPages:
      case SlotCommand::Kind::kCopyPage:
        break;  // of no concern here
    }
  }
}

void SlotSampler::feed(std::span<const Row> rows) {
  for (const Row& row : rows) {
    Slot& slot = at(row.slot);
    if (!slot.remembers()) continue;
    check_token(row.token);
    const auto token = static_cast<std::size_t>(row.token);
    if (slot.seen[token]) continue;
    slot.seen[token] = true;
    slot.distinct.push_back(row.token);
  }
}

PickedToken SlotSampler::pick(const Row& row, std::span<const float> logits) {
  if ((row.flags & kRowScore) != 0) {
    check_token(row.target);
    return {row.slot, row.target, log_probability(logits, row.target)};
  }
  const Slot& slot = at(row.slot);
  const double u = number_for(row, slot.sampling);
  PickedToken picked{row.slot, sampler_.pick(logits, slot.sampling.options, slot.distinct, u), 0.0F};
  if ((row.flags & kRowLogprob) != 0) picked.logprob = log_probability(logits, picked.token);
  return picked;
}

// How many of the largest logits decide.
std::int32_t SlotSampler::top_needed(const SamplingOptions& options) const {
  if (options.temperature == 0.0) return 1;
  return options.top_k == 0 ? vocab_size_ : std::min(options.top_k, vocab_size_);
}

std::optional<LogitsQuery> SlotSampler::query(const Row& row) {
  LogitsQuery query;
  if ((row.flags & kRowScore) != 0) {
    check_token(row.target);
    query.wanted = row.target;
    return query;
  }
  const Slot& slot = at(row.slot);
  query.top = top_needed(slot.sampling.options);
  if (query.top > kMostTopLogits) return std::nullopt;
  query.penalty = slot.sampling.options.repetition_penalty;
  query.penalised = slot.distinct;
  return query;
}

PickedToken SlotSampler::pick(const Row& row, const LogitsSummary& summary) {
  if ((row.flags & kRowScore) != 0) {
    return {row.slot, row.target, summary.log_probability(summary.totals->wanted)};
  }
  const SlotSampling& sampling = at(row.slot).sampling;
  PickedToken picked{row.slot, sampler_.pick(summary.top, sampling.options, number_for(row, sampling)), 0.0F};
  if ((row.flags & kRowLogprob) != 0) {
    const auto chosen = std::ranges::find(summary.top, picked.token, &TopLogit::token);
    picked.logprob = summary.log_probability(chosen->logit);
  }
  return picked;
}

}  // namespace stagecoach
