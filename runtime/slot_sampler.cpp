#include "runtime/slot_sampler.hpp"

#include <fmt/format.h>

#include "runtime/random.hpp"

namespace stagecoach {

SlotSampler::SlotSampler(std::int32_t slots, std::int32_t vocab_size)
    : vocab_size_(vocab_size), slots_(static_cast<std::size_t>(slots)) {}

SlotSampler::Slot& SlotSampler::at(std::int32_t slot) {
  if (slot < 0 || static_cast<std::size_t>(slot) >= slots_.size()) {
    throw WireError(fmt::format("slot {} is outside 0 to {}", slot, slots_.size() - 1));
  }
  return slots_[static_cast<std::size_t>(slot)];
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
    if (row.token < 0 || row.token >= vocab_size_) {
      throw WireError(fmt::format("token {} is outside 0 to {}", row.token, vocab_size_ - 1));
    }
    const auto token = static_cast<std::size_t>(row.token);
    if (slot.seen[token]) continue;
    slot.seen[token] = true;
    slot.distinct.push_back(row.token);
  }
}

PickedToken SlotSampler::pick(const Row& row, std::span<const float> logits) {
  if ((row.flags & kRowScore) != 0) {
    if (row.target < 0 || row.target >= vocab_size_) {
      throw WireError(fmt::format("token {} is outside 0 to {}", row.target, vocab_size_ - 1));
    }
    return {row.slot, row.target, log_probability(logits, row.target)};
  }
  const Slot& slot = at(row.slot);
  const SlotSampling& sampling = slot.sampling;
  const double u = uniform(sampling.seed, sampling.sample, static_cast<std::uint32_t>(row.position) + 1);
  PickedToken picked{row.slot, sampler_.pick(logits, sampling.options, slot.distinct, u), 0.0F};
  if ((row.flags & kRowLogprob) != 0) picked.logprob = log_probability(logits, picked.token);
  return picked;
}

}  // namespace stagecoach
