#include "runtime/pipeline.hpp"

#include <fmt/format.h>

#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <thread>
#include <type_traits>

#include "partition/stage_bytes.hpp"
#include "runtime/context_shards.hpp"

namespace stagecoach {
namespace {

using Clock = std::chrono::steady_clock;

// Waiting without a wake-up call: spin first (a message is often microseconds away), then let others have the core,
// then sleep, so that ranks that share a core do not starve each other.
class IdleWait {
 public:
  void reset() { rounds_ = 0; }
  void wait() {
    ++rounds_;
    if (rounds_ < 200) return;
    if (rounds_ < 1000) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }

 private:
  int rounds_ = 0;
};

}  // namespace

// What both loops share: residual buffers, signs of life, and waits with a deadline.
class Pipeline {
 public:
  explicit Pipeline(const StageContext& context) : c_(context), clock_(context.trace) {
    const std::int64_t bytes = residual_bytes(c_.executor->max_rows(), c_.executor->row_values());
    for (std::int64_t i = 0; i < residual_buffers(c_.in_flight); ++i) {
      Slot& slot = slots_.emplace_back(Slot{c_.backend->allocate(bytes), {}, false, {}});
      if (c_.transport == nullptr) continue;
      c_.transport->prepare({static_cast<std::byte*>(slot.buffer.data()), slot.buffer.bytes()});
    }
    heard_.assign(static_cast<std::size_t>(peers()), Clock::now());
  }
  // The buffers go next; when a failure is what ends the loop, some are still on their way.
  ~Pipeline() {
    if (c_.transport != nullptr) c_.transport->abandon();
  }
  Pipeline(const Pipeline&) = delete;
  Pipeline& operator=(const Pipeline&) = delete;

  bool is_last() const { return c_.stage == c_.stages - 1; }
  std::int32_t self() const { return peer(c_.stage, c_.shards.shard); }
  std::int32_t previous() const { return peer(c_.stage - 1, c_.shards.shard); }
  std::int32_t next() const { return peer(c_.stage + 1, c_.shards.shard); }
  std::int32_t peer(std::int32_t stage, std::int32_t shard) const { return stage * c_.shards.shards + shard; }
  std::int32_t peers() const { return c_.stages * c_.shards.shards; }
  std::string name_of(std::int32_t peer) const {
    const std::int32_t shards = c_.shards.shards;
    const std::string shard = shards > 1 ? fmt::format(", shard {}", peer % shards) : "";
    return fmt::format("stage {}{}", peer / shards, shard);
  }
  const StageContext& context() const { return c_; }

  // A residual buffer that nothing uses, or -1.
  int free_slot() {
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      if (!leaving(i) && !slots_[i].used) return static_cast<int>(i);
    }
    return -1;
  }
  Tensor claim(int slot, const Microbatch& microbatch) {
    slots_[static_cast<std::size_t>(slot)].used = true;
    return residual(slot, microbatch);
  }
  // This shard's rows of it.
  Tensor residual(int slot, const Microbatch& microbatch) const {
    return make_tensor(slots_[static_cast<std::size_t>(slot)].buffer.data(), DType::kFloat32,
                       c_.executor->own_rows(microbatch), c_.executor->row_values());
  }
  void release(int slot) { slots_[static_cast<std::size_t>(slot)].used = false; }
  bool sends_done() {
    bool all = true;
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      if (leaving(i)) all = false;
    }
    return all;
  }
  // What is moved in or out of the buffer, as an event if those are kept.
  void begin_move(int slot, Activity activity, const Microbatch& microbatch) {
    if (c_.trace == nullptr) return;
    std::optional<TraceEvent>& moving = slots_[static_cast<std::size_t>(slot)].moving;
    if (moving) end_move(slot, moving->activity, moving->microbatch);  // rows that the device waited for, not we
    TraceEvent& event = moving.emplace();
    event.activity = activity;
    event.microbatch = static_cast<std::uint32_t>(microbatch.id);
    event.rows = static_cast<std::int32_t>(microbatch.rows.size());
    event.lane = static_cast<std::uint16_t>(kFirstBufferLane + slot);
    event.start_ns = now_ns();
  }
  void end_move(int slot, Activity activity, std::uint64_t microbatch) {
    std::optional<TraceEvent>& moving = slots_[static_cast<std::size_t>(slot)].moving;
    if (!moving || moving->activity != activity || moving->microbatch != static_cast<std::uint32_t>(microbatch)) return;
    moving->duration_ns = now_ns() - moving->start_ns;
    c_.trace->add(*moving);
    moving.reset();
  }

  // Runs the rows in `slot` and starts to send them on. The slot is free again once the send is done, on the last stage
  // once it is released. `progress` is called between operations and until nothing is queued any more: one microbatch
  // at a time stands in the queue, so that no call has to wait for room there.
  TokenBatch run(const Microbatch& microbatch, int slot, const StageExecutor::Progress& progress) {
    clock_.begin_compute(microbatch);
    waiting_since_ = Clock::now();
    const Tensor rows = residual(slot, microbatch);
    const auto advance = [&] {
      idle_.reset();
      progress();
    };
    TokenBatch tokens = c_.executor->run(microbatch, rows, advance, [&](std::int32_t shard) {
      progress();
      watch(peer(c_.stage, shard), fmt::format("its part of microbatch {}", microbatch.id));
      idle_.wait();
    });
    const auto settle = [&] {
      while (!c_.backend->idle()) progress();
    };
    if (c_.backend->in_host_memory()) settle();
    if (!is_last() && rows.rows == 0) {
      release(slot);
    } else if (!is_last()) {  // the transport sends them when they are computed
      begin_move(slot, Activity::kSend, microbatch);
      slots_[static_cast<std::size_t>(slot)].sending = c_.transport->send(rows);
      report_.bytes_sent += rows.bytes();
    }
    settle();
    clock_.end_compute();
    ++report_.microbatches;
    report_.rows += rows.rows;
    idle_.reset();
    waiting_since_ = Clock::now();
    return tokens;
  }
  StageClock& clock() { return clock_; }

  // The leader's headers: to the other shards of its stage, and to the next stage.
  void announce(const Microbatch& microbatch) {
    if (c_.mailbox == nullptr) return;
    const std::vector<std::byte> header = encode(microbatch);
    for (std::int32_t shard = 1; shard < c_.shards.shards; ++shard) {
      c_.mailbox->post(peer(0, shard), Channel::kHeader, header);
    }
    if (!is_last()) c_.mailbox->post(next(), Channel::kHeader, header);
  }

  std::optional<std::vector<std::byte>> take(std::int32_t peer, Channel channel) {
    std::optional<std::vector<std::byte>> message = c_.mailbox->take(peer, channel);
    if (message) heard_[static_cast<std::size_t>(peer)] = Clock::now();
    return message;
  }

  // Moves pending messages and rows along and exchanges signs of life; cheap enough to call between any two operations.
  void keep_alive() {
    if (c_.check) c_.check();
    exchange_signs();
  }
  void exchange_signs() {
    if (c_.mailbox == nullptr) return;
    c_.mailbox->flushed();
    sends_done();
    const Clock::time_point now = Clock::now();
    if (now < next_alive_) return;
    const double interval_s = std::min(1.0, c_.timeout_s / 8);
    next_alive_ = now + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(interval_s));
    const std::byte sign{1};
    for (const std::int32_t peer : neighbours()) {
      c_.mailbox->post(peer, Channel::kAlive, std::span(&sign, 1));
      while (take(peer, Channel::kAlive)) {
      }
    }
  }

  // Throws when `peer`, which something waits for, has been silent for too long.
  void watch(std::int32_t peer, const std::string& what) const {
    const Clock::time_point now = Clock::now();
    const Clock::time_point last = std::max(heard_[static_cast<std::size_t>(peer)], waiting_since_);
    if (std::chrono::duration<double>(now - last).count() > c_.timeout_s) {
      throw TransportError(
          fmt::format("heard nothing from {} for {:.0f} s while waiting for {}; are its host and the link to it alive? "
                      "(--timeout sets the limit)",
                      c_.name ? c_.name(peer) : name_of(peer), c_.timeout_s, what));
    }
  }
  // One round of waiting for `peer`.
  void wait_for(std::int32_t peer, const std::string& what) {
    keep_alive();
    if (peer != self()) watch(peer, what);
    idle_.wait();
  }
  // The same for all others, all of which give signs to the leader: it is the first to say who is silent.
  void wait_for_all(const std::string& what) {
    keep_alive();
    for (std::int32_t peer = 0; peer < peers(); ++peer) {
      if (peer != self()) watch(peer, what);
    }
    idle_.wait();
  }
  void progressed() { idle_.reset(); }

  StageReport report() const {
    StageReport report = report_;
    report.times = clock_.times();
    report.weight_bytes = c_.executor->weight_bytes();
    report.kv_bytes = c_.executor->kv_bytes();
    report.shard_bytes_sent = c_.executor->shard_bytes_sent();
    report.peak_bytes = c_.backend->peak_bytes();
    return report;
  }

 private:
  struct Slot {
    Buffer buffer;
    std::optional<Transport::Ticket> sending;
    bool used = false;
    std::optional<TraceEvent> moving;
  };

  // Whether rows are still on their way out of the buffer, which is free again once they are not.
  bool leaving(std::size_t index) {
    Slot& slot = slots_[index];
    if (!slot.sending) return false;
    if (!c_.transport->done(*slot.sending)) return true;
    slot.sending.reset();
    slot.used = false;
    if (slot.moving) end_move(static_cast<int>(index), Activity::kSend, slot.moving->microbatch);
    return false;
  }

  // Who waits for this one or that it waits for: the chain, its stage's shards, and the leader, which everyone reports
  // to.
  std::vector<std::int32_t> neighbours() const {
    std::vector<std::int32_t> found;
    for (std::int32_t p = 0; p < peers(); ++p) {
      const bool near = p == previous() || p == next() || p / c_.shards.shards == c_.stage;
      if (p != self() && (near || p == 0 || self() == 0)) found.push_back(p);
    }
    return found;
  }

  StageContext c_;
  std::vector<Slot> slots_;
  std::vector<Clock::time_point> heard_;
  Clock::time_point waiting_since_ = Clock::now();
  Clock::time_point next_alive_{};
  IdleWait idle_;
  StageClock clock_;
  StageReport report_;
};

namespace {

static_assert(std::is_trivially_copyable_v<StageReport>);

class Follower {
 public:
  explicit Follower(const StageContext& context) : p_(context) {}

  StageReport run() {
    while (true) {
      service();
      if (front_can_run()) {
        run_front();
        continue;
      }
      if (stopping_ && headers_.empty() && work_.empty() && p_.sends_done() && p_.context().mailbox->flushed()) break;
      wait();
    }
    return send_report();
  }

 private:
  struct Work {
    Microbatch microbatch;
    int slot = -1;
    Transport::Ticket ticket = 0;
    bool arrived = false;
  };

  // Who the headers come from.
  std::int32_t source() const { return p_.context().stage == 0 ? 0 : p_.previous(); }

  // Everything but arithmetic: also called between the operations of a microbatch, so that headers travel on and
  // the next rows arrive while this stage computes.
  void service() {
    p_.keep_alive();
    while (auto bytes = p_.take(source(), Channel::kHeader)) {
      if (!p_.is_last()) p_.context().mailbox->post(p_.next(), Channel::kHeader, *bytes);
      Microbatch microbatch = decode_microbatch(*bytes);
      if (microbatch.stop) {
        stopping_ = true;
      } else {
        headers_.push_back(std::move(microbatch));
      }
      p_.progressed();
    }
    while (!headers_.empty()) {
      const int slot = p_.free_slot();
      if (slot < 0) break;
      Work work;
      work.microbatch = std::move(headers_.front());
      headers_.pop_front();
      work.slot = slot;
      const Tensor rows = p_.claim(slot, work.microbatch);
      work.arrived = p_.context().stage == 0 || rows.rows == 0;
      if (!work.arrived) {
        p_.begin_move(slot, Activity::kReceive, work.microbatch);
        work.ticket = p_.context().transport->receive(rows);
      }
      work_.push_back(std::move(work));
    }
    for (Work& work : work_) {
      if (!arrived(work)) break;  // links are FIFO
    }
  }

  bool arrived(Work& work) {
    if (work.arrived) return true;
    work.arrived = p_.context().transport->done(work.ticket);
    if (work.arrived) p_.end_move(work.slot, Activity::kReceive, work.microbatch.id);
    return work.arrived;
  }

  // Rows that have not arrived may be waited for in the device's queue, behind the launch of what uses them.
  bool front_can_run() {
    if (work_.empty()) return false;
    return work_.front().arrived || p_.context().transport->wait_on_device(work_.front().ticket);
  }

  void run_front() {
    Work work = std::move(work_.front());
    work_.pop_front();
    const auto progress = [&] {
      service();
      if (work.arrived) return;
      if (arrived(work)) {
        p_.clock().rows_arrived();
      } else {
        p_.watch(p_.previous(), rows_of(work));
      }
    };
    const TokenBatch tokens = p_.run(work.microbatch, work.slot, progress);
    while (!work.arrived) progress();  // what was computed is worth nothing before
    if (!p_.is_last()) return;
    p_.context().mailbox->post(0, Channel::kTokens, encode(tokens));
    p_.release(work.slot);
  }

  static std::string rows_of(const Work& work) { return fmt::format("the rows of microbatch {}", work.microbatch.id); }

  void wait() {
    if (!work_.empty()) {
      p_.wait_for(source(), rows_of(work_.front()));
    } else if (stopping_ || !headers_.empty()) {
      p_.wait_for(p_.is_last() ? 0 : p_.next(), "it to take what was sent");
    } else {
      p_.wait_for(source(), "the next microbatch");
    }
  }

  StageReport send_report() {
    const StageReport report = p_.report();
    p_.context().mailbox->post(0, Channel::kReport, std::as_bytes(std::span(&report, 1)));
    while (!p_.context().mailbox->flushed()) p_.wait_for(0, "it to take the last report");
    return report;
  }

  Pipeline p_;
  std::deque<Microbatch> headers_;  // arrived, no buffer for their rows yet
  std::deque<Work> work_;
  bool stopping_ = false;
};

}  // namespace

Leader::Leader(const StageContext& context) : pipeline_(std::make_unique<Pipeline>(context)) {}
Leader::~Leader() = default;

namespace {

// The tokens of a microbatch, of which each shard of the last stage picks those of its rows.
class TokenGather {
 public:
  explicit TokenGather(std::int32_t shards) : shards_(static_cast<std::size_t>(shards)) {}

  // All of them, in order of the rows, when this was the last part.
  std::optional<TokenBatch> add(std::int32_t shard, TokenBatch part) {
    if (shards_ == 1) return part;
    Parts& parts = parts_[part.id];
    parts.of.resize(shards_);
    TokenBatch& place = parts.of[static_cast<std::size_t>(shard)];
    place = std::move(part);
    if (++parts.count < shards_) return std::nullopt;
    TokenBatch all{place.id, {}};
    for (const TokenBatch& one : parts.of) all.tokens.insert(all.tokens.end(), one.tokens.begin(), one.tokens.end());
    parts_.erase(all.id);
    return all;
  }

 private:
  struct Parts {
    std::vector<TokenBatch> of;
    std::size_t count = 0;
  };
  std::size_t shards_;
  std::map<std::uint64_t, Parts> parts_;  // by microbatch
};

}  // namespace

void Leader::run(Scheduler& scheduler, const LeaderHooks& hooks) {
  Pipeline& p = *pipeline_;
  const std::int32_t shards = p.context().shards.shards;
  TokenGather gather(shards);
  const auto handle = [&](std::int32_t shard, TokenBatch part) {
    const std::int64_t begin_ns = now_ns();
    const std::optional<TokenBatch> all = gather.add(shard, std::move(part));
    if (!all) return;
    const TokenBatch& tokens = *all;
    Scheduler::Progress progress = scheduler.complete(tokens);
    if (hooks.on_token) {
      for (const Scheduler::TokenEvent& event : progress.tokens) hooks.on_token(event);
    }
    for (Sample& sample : progress.finished) hooks.on_finished(std::move(sample));
    p.clock().scheduled(begin_ns, tokens.id);
  };
  const auto service = [&] {
    p.keep_alive();
    if (hooks.service) hooks.service();
  };
  const std::int32_t last = p.peer(p.context().stages - 1, 0);
  while (true) {
    if (hooks.service) hooks.service();
    for (std::int32_t shard = 0; shard < shards; ++shard) {
      if (last + shard == p.self()) continue;
      while (const auto bytes = p.take(last + shard, Channel::kTokens)) {
        handle(shard, decode_token_batch(*bytes));
        p.progressed();
      }
    }
    while (scheduler.wants_requests()) {
      std::optional<Request> request = hooks.next_request();
      if (!request) break;
      scheduler.add(std::move(*request));
    }
    if (scheduler.idle() && hooks.exhausted()) return;
    const int slot = p.free_slot();
    if (slot >= 0) {
      const std::int64_t begin_ns = now_ns();
      if (const std::optional<Microbatch> microbatch = scheduler.next()) {
        p.claim(slot, *microbatch);
        p.announce(*microbatch);
        p.clock().scheduled(begin_ns, microbatch->id);
        TokenBatch tokens = p.run(*microbatch, slot, service);
        if (p.is_last()) {
          p.release(slot);
          handle(0, std::move(tokens));
        }
        continue;
      }
    }
    p.wait_for_all(scheduler.in_flight() > 0 ? fmt::format("the tokens of {} microbatches", scheduler.in_flight())
                                             : std::string("prompts"));
  }
}

void Leader::keep_alive() {
  pipeline_->exchange_signs();
}

std::vector<StageReport> Leader::stop() {
  Pipeline& p = *pipeline_;
  std::vector<StageReport> reports{p.report()};
  if (p.peers() == 1) return reports;
  Microbatch stop;
  stop.stop = true;
  p.announce(stop);
  for (std::int32_t peer = 1; peer < p.peers(); ++peer) {
    std::optional<std::vector<std::byte>> bytes;
    while (!(bytes = p.take(peer, Channel::kReport))) {
      p.sends_done();
      p.wait_for(peer, "its last report");
    }
    StageReport report;
    if (bytes->size() != sizeof report)
      throw WireError(fmt::format("report of {} has {} bytes", p.name_of(peer), bytes->size()));
    std::memcpy(&report, bytes->data(), sizeof report);
    reports.push_back(report);
  }
  while (!p.sends_done() || !p.context().mailbox->flushed()) p.wait_for(1, "it to take what was sent");
  return reports;
}

StageReport run_follower(const StageContext& context) {
  return Follower(context).run();
}

}  // namespace stagecoach
