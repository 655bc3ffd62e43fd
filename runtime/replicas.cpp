#include "runtime/replicas.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "runtime/request_wire.hpp"

namespace stagecoach {
namespace {

using Clock = std::chrono::steady_clock;

// How often, at most, messages are looked for between operations, which may be short.
constexpr std::chrono::microseconds kLookEvery{50};

enum class Word : std::uint8_t { kRequests = 0, kDrop = 1, kEnd = 2 };

std::vector<std::byte> work_message(Word word, const std::vector<Request>& requests) {
  wire::Writer out;
  out.put(static_cast<std::uint8_t>(word));
  out.put_count(requests.size());
  for (const Request& request : requests) put(out, request);
  return out.take();
}

[[noreturn]] void give_up(const OfficeOptions& office, std::int32_t place) {
  throw TransportError(fmt::format(
      "heard nothing from {} for {:.0f} s; are its host and the link to it alive? (--timeout sets the limit)",
      office.name(place), office.timeout_s));
}

// What a helper tells of itself, all counted from the start.
struct Account {
  std::int64_t taken = 0;    // requests that its scheduler took, or that it dropped
  std::int64_t dropped = 0;  // samples
};

class Helper {
 public:
  Helper(const OfficeOptions& office, std::int32_t dealer) : office_(office), dealer_(dealer) {}

  LeaderHooks hooks() {
    LeaderHooks hooks;
    hooks.next_request = [this] { return next(); };
    hooks.exhausted = [this] { return ended_ && queue_.empty(); };
    hooks.on_finished = [this](Sample&& sample) { finished_.push_back(std::move(sample)); };
    hooks.service = [this] { service(); };
    return hooks;
  }

 private:
  std::optional<Request> next() {
    if (queue_.empty()) return std::nullopt;
    Request request = std::move(queue_.front());
    queue_.pop_front();
    ++account_.taken;
    news_ = true;
    return request;
  }

  void service() {
    const Clock::time_point now = Clock::now();
    if (now < next_look_) return;
    next_look_ = now + kLookEvery;
    while (const auto bytes = office_.mailbox->take(dealer_, Channel::kWork)) {
      listening_.heard();
      read(*bytes);
    }
    if (!ended_ && listening_.too_long(office_.timeout_s)) give_up(office_, dealer_);
    if (news_ || !finished_.empty() || now >= next_sign_) report(now);
    office_.mailbox->flushed();
  }

  void read(const std::vector<std::byte>& bytes) {
    wire::Reader in(bytes);
    const auto word = static_cast<Word>(in.u8());
    if (word > Word::kEnd) throw WireError("message of the desk with an unknown word");
    for (std::size_t n = in.count(1); n > 0; --n) queue_.push_back(read_request(in));
    in.end();
    if (word == Word::kEnd) ended_ = true;
    if (word != Word::kDrop) return;
    for (const Request& request : queue_) account_.dropped += request.num_samples;
    account_.taken += static_cast<std::int64_t>(queue_.size());
    queue_.clear();
    news_ = true;
  }

  void report(Clock::time_point now) {
    wire::Writer out;
    out.put(account_.taken);
    out.put(account_.dropped);
    out.put_count(finished_.size());
    for (const Sample& sample : finished_) put(out, sample);
    office_.mailbox->post(dealer_, Channel::kResults, out.bytes());
    finished_.clear();
    news_ = false;
    next_sign_ = now + sign_interval(office_.timeout_s);
  }

  const OfficeOptions& office_;
  std::int32_t dealer_;
  Listening listening_;
  std::deque<Request> queue_;
  std::vector<Sample> finished_;
  Account account_;
  bool news_ = false, ended_ = false;
  Clock::time_point next_look_{}, next_sign_{};
};

}  // namespace

Dealer::Dealer(OfficeOptions office, const std::vector<std::int32_t>& leaders, std::int32_t ahead, LeaderHooks desk,
               std::function<bool()> draining)
    : office_(std::move(office)),
      ahead_(ahead),
      desk_(std::move(desk)),
      draining_(std::move(draining)),
      delivered_(leaders.size()) {
  for (const std::int32_t place : leaders) replicas_.push_back({place, 0, 0, 0, 0, {}, {}});
}

LeaderHooks Dealer::hooks() {
  LeaderHooks hooks;
  hooks.on_token = desk_.on_token;
  hooks.on_finished = [this](Sample&& sample) { deliver(0, std::move(sample)); };
  hooks.service = [this] { service(); };
  hooks.next_request = [this]() -> std::optional<Request> {
    deal();
    if (own_.empty()) return std::nullopt;
    Request request = std::move(own_.front());
    own_.pop_front();
    ++replicas_[0].taken;
    return request;
  };
  hooks.exhausted = [this] {
    return std::ranges::all_of(replicas_, [](const Replica& r) { return r.under_way == 0; }) && desk_.exhausted();
  };
  return hooks;
}

void Dealer::service() {
  const Clock::time_point now = Clock::now();
  if (now < next_look_) return;
  next_look_ = now + kLookEvery;
  collect();
  if (draining_ && draining_()) drop();
  deal();
  const bool sign = now >= next_sign_;
  if (sign) next_sign_ = now + sign_interval(office_.timeout_s);
  send(sign);
  office_.mailbox->flushed();
}

void Dealer::collect() {
  for (std::size_t r = 1; r < replicas_.size(); ++r) {
    Replica& replica = replicas_[r];
    while (const auto bytes = office_.mailbox->take(replica.place, Channel::kResults)) {
      replica.listening.heard();
      wire::Reader in(*bytes);
      replica.taken = in.i64();
      const std::int64_t dropped = in.i64();
      replica.under_way -= dropped - std::exchange(replica.dropped, dropped);
      for (std::size_t n = in.count(1); n > 0; --n) deliver(r, read_sample(in));
      in.end();
    }
    if (replica.listening.too_long(office_.timeout_s)) give_up(office_, replica.place);
  }
}

// Of those with room the one with the least to do, the first of equals.
Dealer::Replica* Dealer::next_in_turn() {
  Replica* best = nullptr;
  for (Replica& replica : replicas_) {
    if (replica.given - replica.taken >= ahead_) continue;
    if (best == nullptr || replica.under_way < best->under_way) best = &replica;
  }
  return best;
}

void Dealer::deal() {
  while (Replica* replica = next_in_turn()) {
    std::optional<Request> request = desk_.next_request();
    if (!request) return;
    ++replica->given;
    replica->under_way += request->num_samples;
    if (replica == replicas_.data()) {
      own_.push_back(std::move(*request));
    } else {
      replica->to_send.push_back(std::move(*request));
    }
  }
}

void Dealer::send(bool also_signs) {
  for (std::size_t r = 1; r < replicas_.size(); ++r) {
    Replica& replica = replicas_[r];
    if (replica.to_send.empty() && !also_signs) continue;
    office_.mailbox->post(replica.place, Channel::kWork, work_message(Word::kRequests, replica.to_send));
    replica.to_send.clear();
  }
}

void Dealer::drop() {
  if (std::exchange(dropped_, true)) return;
  for (const Request& request : own_) replicas_[0].under_way -= request.num_samples;
  own_.clear();
  for (std::size_t r = 1; r < replicas_.size(); ++r) {
    Replica& replica = replicas_[r];
    office_.mailbox->post(replica.place, Channel::kWork, work_message(Word::kDrop, std::exchange(replica.to_send, {})));
  }
}

void Dealer::deliver(std::size_t replica, Sample&& sample) {
  --replicas_[replica].under_way;
  ++delivered_[replica];
  desk_.on_finished(std::move(sample));
}

void Dealer::end(const std::function<void()>& waiting) {
  for (std::size_t r = 1; r < replicas_.size(); ++r) {
    office_.mailbox->post(replicas_[r].place, Channel::kWork, work_message(Word::kEnd, {}));
  }
  while (!office_.mailbox->flushed()) waiting();
}

void help(Leader& leader, Scheduler& scheduler, const OfficeOptions& office, std::int32_t dealer,
          const std::function<void(LeaderHooks&)>& around) {
  Helper helper(office, dealer);
  LeaderHooks hooks = helper.hooks();
  if (around) around(hooks);
  leader.run(scheduler, hooks);
  while (!office.mailbox->flushed()) leader.keep_alive();
}

}  // namespace stagecoach
