#include "launch/clocks.hpp"

#include <fmt/format.h>

#include <chrono>
#include <cstring>
#include <thread>

#include "runtime/stage_trace.hpp"

namespace stagecoach {
namespace {

constexpr int kRounds = 40;                       // the fastest counts
constexpr std::int64_t kAttentiveNs = 5'000'000;  // then others may have the core
constexpr double kPatience = 10.0;                // of those that are done with it, in seconds

class Conversation {
 public:
  Conversation(const World& world, double timeout_s)
      : world_(world), mailbox_(world.mpi()->mailbox(0)), timeout_s_(timeout_s) {}

  std::int64_t hear(int rank) {
    const std::int64_t since = now_ns();
    std::optional<std::vector<std::byte>> bytes;
    while (!(bytes = mailbox_->take(rank, Channel::kReport))) pause(since, rank);
    std::int64_t value = 0;
    if (bytes->size() != sizeof value) throw WireError(fmt::format("a clock's reading of {} bytes", bytes->size()));
    std::memcpy(&value, bytes->data(), sizeof value);
    return value;
  }
  void say(int rank, std::int64_t value) {
    mailbox_->post(rank, Channel::kReport, std::as_bytes(std::span(&value, 1)));
  }
  void finish(int rank) {
    const std::int64_t since = now_ns();
    while (!mailbox_->flushed()) pause(since, rank);
  }

 private:
  void pause(std::int64_t since, int rank) const {
    world_.alive();
    const std::int64_t waited = now_ns() - since;
    if (1e-9 * static_cast<double>(waited) > timeout_s_) {
      throw TransportError(fmt::format("{} did not say within {:.0f} s what its clock shows (--timeout sets the limit)",
                                       world_.name_of(rank), timeout_s_));
    }
    if (waited > kAttentiveNs) {
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    } else {
      std::this_thread::yield();
    }
  }

  const World& world_;
  std::unique_ptr<Mailbox> mailbox_;
  double timeout_s_;
};

}  // namespace

std::vector<ClockOffset> compare_clocks(const World& world, double timeout_s) {
  std::vector<ClockOffset> offsets;
  if (world.rank() == 0) offsets.resize(static_cast<std::size_t>(world.size()));
  if (world.rank() == 0) offsets.front().add(0, 0, 0);
  if (world.size() == 1) return offsets;
  world.agree_within(timeout_s + kPatience, [&] {
    Conversation conversation(world, timeout_s);
    if (world.rank() != 0) {
      for (int round = 0; round < kRounds; ++round) {
        conversation.hear(0);
        conversation.say(0, now_ns());
      }
      conversation.finish(0);
      return;
    }
    for (int rank = 1; rank < world.size(); ++rank) {
      for (int round = 0; round < kRounds; ++round) {
        const std::int64_t sent = now_ns();
        conversation.say(rank, sent);
        const std::int64_t theirs = conversation.hear(rank);
        offsets[static_cast<std::size_t>(rank)].add(sent, theirs, now_ns());
      }
      conversation.finish(rank);
    }
  });
  return offsets;
}

}  // namespace stagecoach
