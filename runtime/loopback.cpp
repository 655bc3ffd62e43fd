#include "runtime/loopback.hpp"

#include <fmt/format.h>

#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <tuple>
#include <unordered_set>
#include <utility>

namespace stagecoach {
namespace {

void require_contiguous(const Tensor& tensor) {
  if (tensor.stride != tensor.cols) {
    throw std::invalid_argument(
        fmt::format("a tensor of stride {} and {} columns cannot be sent", tensor.stride, tensor.cols));
  }
}

}  // namespace

// One link's two queues. An operation is matched when its counterpart has been posted; matching copies the bytes.
struct LoopbackHub::State {
  struct Message {
    std::uint64_t ticket = 0;
    const void* data = nullptr;
    std::int64_t bytes = 0;
    std::vector<std::byte> copy;  // buffered mode
  };
  struct Receive {
    std::uint64_t ticket = 0;
    void* data = nullptr;
    std::int64_t bytes = 0;
  };
  struct Link {
    std::deque<Message> sends;
    std::deque<Receive> receives;
  };

  std::mutex mutex;
  LoopbackMode mode = LoopbackMode::kBuffered;
  std::string failure;
  std::map<std::tuple<int, int, Channel>, std::deque<std::vector<std::byte>>> mail;  // (from, to, channel)
  std::map<std::pair<int, int>, Link> links;                                         // (from, to)
  std::unordered_set<std::uint64_t> finished;
  std::uint64_t next_ticket = 1;

  void check_alive() const {
    if (!failure.empty()) throw TransportError("another stage failed: " + failure);
  }

  void match(Link& link) {
    while (!link.sends.empty() && !link.receives.empty()) {
      const Message& send = link.sends.front();
      const Receive& receive = link.receives.front();
      if (send.bytes != receive.bytes) {
        throw TransportError(fmt::format("{} bytes were sent where {} were expected", send.bytes, receive.bytes));
      }
      std::memcpy(receive.data, send.copy.empty() ? send.data : send.copy.data(), static_cast<std::size_t>(send.bytes));
      if (mode == LoopbackMode::kRendezvous) finished.insert(send.ticket);
      finished.insert(receive.ticket);
      link.sends.pop_front();
      link.receives.pop_front();
    }
  }
};

class LoopbackMailbox final : public Mailbox {
 public:
  LoopbackMailbox(LoopbackHub::State& state, int stage, int first) : state_(state), stage_(stage), first_(first) {}

  void post(int peer, Channel channel, std::span<const std::byte> bytes) override {
    const std::scoped_lock lock(state_.mutex);
    state_.check_alive();
    state_.mail[{stage_, first_ + peer, channel}].emplace_back(bytes.begin(), bytes.end());
  }
  std::optional<std::vector<std::byte>> take(int peer, Channel channel) override {
    const std::scoped_lock lock(state_.mutex);
    const auto found = state_.mail.find({first_ + peer, stage_, channel});
    if (found == state_.mail.end() || found->second.empty()) {
      state_.check_alive();
      return std::nullopt;
    }
    std::vector<std::byte> message = std::move(found->second.front());
    found->second.pop_front();
    return message;
  }
  bool flushed() override { return true; }

 private:
  LoopbackHub::State& state_;
  int stage_, first_;
};

class LoopbackTransport final : public Transport {
 public:
  LoopbackTransport(LoopbackHub::State& state, int stage, int previous, int next)
      : state_(state), in_(previous, stage), out_(stage, next) {}
  ~LoopbackTransport() override { withdraw(); }

  Ticket send(Tensor tensor) override {
    require_contiguous(tensor);
    const std::scoped_lock lock(state_.mutex);
    state_.check_alive();
    LoopbackHub::State::Message message{state_.next_ticket++, tensor.data, tensor.bytes(), {}};
    if (state_.mode == LoopbackMode::kBuffered) {
      const auto* first = static_cast<const std::byte*>(tensor.data);
      message.copy.assign(first, first + tensor.bytes());
      state_.finished.insert(message.ticket);
    }
    const Ticket ticket = message.ticket;
    LoopbackHub::State::Link& link = state_.links[out_];
    link.sends.push_back(std::move(message));
    state_.match(link);
    return ticket;
  }

  Ticket receive(Tensor tensor) override {
    require_contiguous(tensor);
    const std::scoped_lock lock(state_.mutex);
    state_.check_alive();
    const Ticket ticket = state_.next_ticket++;
    LoopbackHub::State::Link& link = state_.links[in_];
    link.receives.push_back({ticket, tensor.data, tensor.bytes()});
    state_.match(link);
    return ticket;
  }

  bool done(Ticket ticket) override {
    const std::scoped_lock lock(state_.mutex);
    if (state_.finished.erase(ticket) > 0) return true;
    state_.check_alive();
    return false;
  }

  bool abandon() noexcept override {
    withdraw();
    return true;
  }

 private:
  // What was buffered stays: it was sent, and refers to no memory of this stage.
  void withdraw() noexcept {
    const std::scoped_lock lock(state_.mutex);
    const auto in = state_.links.find(in_), out = state_.links.find(out_);
    if (in != state_.links.end()) in->second.receives.clear();
    if (state_.mode == LoopbackMode::kRendezvous && out != state_.links.end()) out->second.sends.clear();
  }

  LoopbackHub::State& state_;
  std::pair<int, int> in_, out_;
};

LoopbackHub::LoopbackHub(LoopbackMode mode) : state_(std::make_unique<State>()) {
  state_->mode = mode;
}
LoopbackHub::~LoopbackHub() = default;

std::unique_ptr<Mailbox> LoopbackHub::mailbox(int stage, int first) {
  return std::make_unique<LoopbackMailbox>(*state_, stage, first);
}
std::unique_ptr<Transport> LoopbackHub::transport(int stage, int previous, int next) {
  return std::make_unique<LoopbackTransport>(*state_, stage, previous, next);
}

void LoopbackHub::fail(const std::string& reason) {
  const std::scoped_lock lock(state_->mutex);
  if (state_->failure.empty()) state_->failure = reason;
}

}  // namespace stagecoach
