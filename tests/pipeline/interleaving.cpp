#include "tests/pipeline/interleaving.hpp"

#include <fmt/format.h>

namespace stagecoach::test {
namespace {

// More polls than any round of the loops makes: whoever has polled so often in vain waits for another stage.
constexpr int kPatience = 24;

class WatchedMailbox final : public Mailbox {
 public:
  WatchedMailbox(Interleaving& order, std::int32_t stage, std::unique_ptr<Mailbox> inner)
      : order_(order), stage_(stage), inner_(std::move(inner)) {}
  void post(int peer, Channel channel, std::span<const std::byte> bytes) override {
    order_.before(stage_);
    inner_->post(peer, channel, bytes);
    order_.after(stage_, channel != Channel::kAlive);
  }
  std::optional<std::vector<std::byte>> take(int peer, Channel channel) override {
    order_.before(stage_);
    auto message = inner_->take(peer, channel);
    order_.after(stage_, message.has_value() && channel != Channel::kAlive);
    return message;
  }
  bool flushed() override {
    order_.before(stage_);
    const bool all = inner_->flushed();
    order_.after(stage_, false);
    return all;
  }

 private:
  Interleaving& order_;
  std::int32_t stage_;
  std::unique_ptr<Mailbox> inner_;
};

class WatchedTransport final : public Transport {
 public:
  WatchedTransport(Interleaving& order, std::int32_t stage, std::unique_ptr<Transport> inner)
      : order_(order), stage_(stage), inner_(std::move(inner)) {}
  Ticket send(Tensor tensor) override {
    order_.before(stage_);
    const Ticket ticket = inner_->send(tensor);
    order_.after(stage_, true);
    return ticket;
  }
  Ticket receive(Tensor tensor) override {
    order_.before(stage_);
    const Ticket ticket = inner_->receive(tensor);
    order_.after(stage_, true);
    return ticket;
  }
  bool done(Ticket ticket) override {
    order_.before(stage_);
    const bool is_done = inner_->done(ticket);
    order_.after(stage_, is_done);
    return is_done;
  }
  bool abandon() noexcept override { return inner_->abandon(); }

 private:
  Interleaving& order_;
  std::int32_t stage_;
  std::unique_ptr<Transport> inner_;
};

}  // namespace

Interleaving::Interleaving(std::int32_t stages, Schedule schedule) : schedule_(std::move(schedule)) {
  for (std::int32_t s = 0; s < stages; ++s) stages_.push_back(std::make_unique<Stage>());
}

std::unique_ptr<Mailbox> Interleaving::around(std::int32_t stage, std::unique_ptr<Mailbox> mailbox) {
  return std::make_unique<WatchedMailbox>(*this, stage, std::move(mailbox));
}
std::unique_ptr<Transport> Interleaving::around(std::int32_t stage, std::unique_ptr<Transport> transport) {
  return std::make_unique<WatchedTransport>(*this, stage, std::move(transport));
}

// The last to arrive starts stage 0, so that runs do not depend on how threads start.
void Interleaving::begin(std::int32_t stage) {
  {
    const std::scoped_lock lock(starting_);
    at(stage).started = true;
    if (++started_ == static_cast<std::int32_t>(stages_.size())) at(0).turn.release();
  }
  at(stage).turn.acquire();
}

void Interleaving::end(std::int32_t stage, const char* failure) {
  if (!at(stage).started) throw std::logic_error(fmt::format("stage {} failed before its loop: {}", stage, failure));
  at(stage).ended = true;
  something_changed();
  hand_over(stage);
}

void Interleaving::before(std::int32_t stage) {
  Stage& mine = at(stage);
  ++mine.calls;
  ++calls_;
  if (deadlocked_) throw Deadlock("deadlock");
  if (mine.in_vain >= kPatience || schedule_.delays.contains(calls_)) {
    if (const auto next = next_after(stage)) {
      at(*next).turn.release();
      mine.turn.acquire();
    } else if (mine.in_vain >= kPatience) {
      deadlocked_ = true;
    }
    if (deadlocked_) throw Deadlock(fmt::format("deadlock: no stage can get on, stage {} noticed", stage));
  }
  if (stage == schedule_.failing_stage && mine.calls == schedule_.failing_call) {
    throw std::runtime_error("injected failure");
  }
}

void Interleaving::after(std::int32_t stage, bool progress) {
  if (progress) {
    something_changed();
  } else {
    ++at(stage).in_vain;
  }
}

void Interleaving::something_changed() {
  for (const auto& stage : stages_) stage->in_vain = 0;
}

std::optional<std::int32_t> Interleaving::next_after(std::int32_t stage) {
  const auto count = static_cast<std::int32_t>(stages_.size());
  for (std::int32_t i = 1; i < count; ++i) {
    const std::int32_t other = (stage + i) % count;
    if (!at(other).ended && at(other).in_vain < kPatience) return other;
  }
  return std::nullopt;
}

void Interleaving::hand_over(std::int32_t from) {
  if (const auto next = next_after(from)) at(*next).turn.release();
}

}  // namespace stagecoach::test
