#include "runtime/ring_test.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>
#include <vector>

namespace stagecoach {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t kSmall = 64;       // values
constexpr std::int64_t kLarge = 1 << 17;  // values
constexpr int kLargeCount = 4;
constexpr int kSmallCount = 5;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// What stage `from` sends at place `i`: differs between stages, and is exact in float32.
float value_at(std::int32_t from, std::int64_t i) {
  return static_cast<float>(((from + 1) * 7919 + i * 31) % 65521);
}

std::vector<float> values(std::int32_t from, std::int64_t count) {
  std::vector<float> values(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) values[static_cast<std::size_t>(i)] = value_at(from, i);
  return values;
}
bool equal(std::span<const std::byte> bytes, std::int32_t from, std::int64_t count) {
  const std::vector<float> expected = values(from, count);
  return bytes.size() == expected.size() * 4 && std::memcmp(bytes.data(), expected.data(), bytes.size()) == 0;
}

Tensor rows_of(const Buffer& memory, std::int64_t count, int place) {
  return make_tensor(static_cast<std::byte*>(memory.data()) + count * 4 * place, DType::kFloat32, 1, count);
}

// What is exchanged with one neighbour. `poll` is called until it says true and never waits.
class Exchange {
 public:
  Exchange(const RingParts& parts, std::int32_t peer, const char* how) : p_(parts), peer_(peer), how_(how) {}
  virtual ~Exchange() = default;
  virtual bool poll() = 0;

  double silent_s() const { return seconds_since(progressed_); }
  // Throws when nothing has come for too long.
  void check_deadline() const {
    if (silent_s() < p_.timeout_s) return;
    throw TransportError(fmt::format(
        "{} and {} cannot talk {}: nothing for {:.0f} s; check that both hosts use a network interface that reaches "
        "the "
        "other (OMPI_MCA_btl_tcp_if_include for MPI, NCCL_SOCKET_IFNAME for NCCL) and that no firewall is in the way "
        "(--timeout sets the limit)",
        p_.name(std::min(p_.stage, peer_)), p_.name(std::max(p_.stage, peer_)), how_, p_.timeout_s));
  }

 protected:
  int mail_peer() const { return p_.first_peer + peer_ * p_.peer_step; }
  void progressed() { progressed_ = Clock::now(); }
  void check_payload(std::span<const std::byte> bytes, std::int64_t count) const {
    if (equal(bytes, peer_, count)) return;
    throw TransportError(fmt::format("what {} sends {} reaches {} changed", p_.name(peer_), how_, p_.name(p_.stage)));
  }

  const RingParts& p_;
  std::int32_t peer_;
  const char* how_;

 private:
  Clock::time_point progressed_ = Clock::now();
};

// A message from the previous stage, on the channel that it will use.
class Greeting final : public Exchange {
 public:
  Greeting(const RingParts& parts, std::int32_t previous) : Exchange(parts, previous, "over MPI") {}
  bool poll() override {
    const auto message = p_.mailbox->take(mail_peer(), p_.stage == 0 ? Channel::kTokens : Channel::kHeader);
    if (message) check_payload(*message, kSmall);
    return message.has_value();
  }
};

// Small sends, each after the answer to the one before, so that the receiver can tell how long that takes; then large
// ones at once.
class Sends final : public Exchange {
 public:
  explicit Sends(const RingParts& parts)
      : Exchange(parts, parts.stage + 1, "as rows"), memory_(parts.backend->allocate(kLarge * 4)) {
    const std::vector<float> mine = values(p_.stage, kLarge);
    p_.backend->upload(memory_.data(), mine.data(), kLarge * 4);
    send(kSmall);
  }
  bool poll() override {
    std::erase_if(tickets_, [&](Transport::Ticket ticket) { return p_.transport->done(ticket); });
    if (answers_ < kSmallCount) {
      if (!p_.mailbox->take(mail_peer(), Channel::kAlive)) return false;
      progressed();
      if (++answers_ < kSmallCount) {
        send(kSmall);
      } else {
        for (int i = 0; i < kLargeCount; ++i) send(kLarge);
      }
      return false;
    }
    return tickets_.empty();
  }
  void leave_memory() { memory_.leave(); }

 private:
  void send(std::int64_t count) { tickets_.push_back(p_.transport->send(rows_of(memory_, count, 0))); }

  Buffer memory_;
  std::vector<Transport::Ticket> tickets_;
  int answers_ = 0;
};

class Receives final : public Exchange {
 public:
  explicit Receives(const RingParts& parts)
      : Exchange(parts, parts.stage - 1, "as rows"), memory_(parts.backend->allocate(kLarge * 4 * kLargeCount)) {
    receive(kSmall);
  }
  bool poll() override {
    if (!p_.transport->done(tickets_[static_cast<std::size_t>(arrived_)])) return false;
    progressed();
    ++arrived_;
    if (arrived_ <= kSmallCount) {
      take_small();
    } else {
      const int large = arrived_ - kSmallCount;
      if (large < kLargeCount) return false;
      figures_.gigabytes_per_s = 1e-9 * kLargeCount * kLarge * 4 / seconds_since(answered_);
      for (int i = 0; i < kLargeCount; ++i) check_rows(kLarge, i);
      return true;
    }
    return false;
  }
  const RingFigures& figures() const { return figures_; }

 private:
  void take_small() {
    if (arrived_ > 1) {  // the first one connects
      const double us = 1e6 * seconds_since(answered_);
      figures_.latency_us = arrived_ == 2 ? us : std::min(figures_.latency_us, us);
    }
    check_rows(kSmall, 0);
    if (arrived_ < kSmallCount) {
      receive(kSmall);
    } else {
      for (int i = 0; i < kLargeCount; ++i) receive(kLarge, i);
    }
    const std::byte word{};
    answered_ = Clock::now();
    p_.mailbox->post(mail_peer(), Channel::kAlive, std::span(&word, 1));
  }
  void receive(std::int64_t count, int place = 0) {
    tickets_.push_back(p_.transport->receive(rows_of(memory_, count, place)));
  }
  void check_rows(std::int64_t count, int place) {
    std::vector<std::byte> host(static_cast<std::size_t>(count * 4));
    p_.backend->download(host.data(), rows_of(memory_, count, place).data, count * 4);
    check_payload(host, count);
  }

  Buffer memory_;
  std::vector<Transport::Ticket> tickets_;  // of all so far
  int arrived_ = 0;
  Clock::time_point answered_;
  RingFigures figures_;
};

// All at the same time: a pair that cannot talk holds up no other's, so that the lowest rank that complains is right.
void exchange(const RingParts& parts, std::vector<Exchange*> open) {
  while (true) {
    std::erase_if(open, [](Exchange* one) { return one->poll(); });
    if (parts.mailbox->flushed() && open.empty()) return;
    if (parts.check) parts.check();
    for (const Exchange* one : open) one->check_deadline();
    // Attentive as long as something happens, so that what is measured is the way and not this loop.
    const bool waiting = std::ranges::all_of(open, [](const Exchange* one) { return one->silent_s() > 0.005; });
    if (waiting) std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

}  // namespace

std::optional<RingFigures> ring_test(const RingParts& parts) {
  const bool first = parts.stage == 0;
  const bool last = parts.stage == parts.stages - 1;
  const std::vector<float> mine = values(parts.stage, kSmall);
  parts.mailbox->post(parts.first_peer + (last ? 0 : parts.stage + 1) * parts.peer_step,
                      last ? Channel::kTokens : Channel::kHeader, std::as_bytes(std::span(mine)));
  Greeting greeting(parts, first ? parts.stages - 1 : parts.stage - 1);
  std::optional<Sends> sends;
  std::optional<Receives> receives;
  std::vector<Exchange*> open{&greeting};
  if (!last) open.push_back(&sends.emplace(parts));
  if (!first) open.push_back(&receives.emplace(parts));
  try {
    exchange(parts, open);
  } catch (...) {
    if (!parts.transport->abandon() && sends) sends->leave_memory();  // before it goes
    throw;
  }
  if (first) return std::nullopt;
  return receives->figures();
}

}  // namespace stagecoach
