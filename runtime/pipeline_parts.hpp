// What both loops of pipeline.hpp are made of: residual buffers, signs of life, and waits with a deadline.
#pragma once

#include <fmt/format.h>

#include <chrono>
#include <map>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "partition/stage_bytes.hpp"
#include "runtime/context_shards.hpp"
#include "runtime/pipeline.hpp"
#include "runtime/silence.hpp"

namespace stagecoach {

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

// One rank of a pipeline.
class Pipeline {
 public:
  using Clock = std::chrono::steady_clock;

  explicit Pipeline(const StageContext& context) : c_(context), clock_(context.trace) {
    const std::int64_t bytes = residual_bytes(c_.executor->max_rows(), c_.executor->row_values());
    for (std::int64_t i = 0; i < residual_buffers(c_.in_flight); ++i) {
      Slot& slot = slots_.emplace_back(Slot{c_.backend->allocate(bytes), {}, false, {}});
      if (c_.transport == nullptr) continue;
      c_.transport->prepare({static_cast<std::byte*>(slot.buffer.data()), slot.buffer.bytes()});
    }
    listening_.resize(static_cast<std::size_t>(peers()));
  }
  // The buffers go next; when a failure is what ends the loop, some are still on their way.
  ~Pipeline() {
    if (c_.transport == nullptr || c_.transport->abandon()) return;
    for (Slot& slot : slots_) slot.buffer.leave();
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
    if (message) listening_[static_cast<std::size_t>(peer)].heard();
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
    next_alive_ = now + sign_interval(c_.timeout_s);
    const std::byte sign{1};
    for (const std::int32_t peer : neighbours()) {
      c_.mailbox->post(peer, Channel::kAlive, std::span(&sign, 1));
      while (take(peer, Channel::kAlive)) {
      }
    }
  }

  // Throws when `peer`, which something waits for, has been silent for too long.
  void watch(std::int32_t peer, const std::string& what) {
    if (listening_[static_cast<std::size_t>(peer)].too_long(c_.timeout_s)) {
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
  std::vector<Listening> listening_;  // by peer
  Clock::time_point next_alive_{};
  IdleWait idle_;
  StageClock clock_;
  StageReport report_;
};

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

}  // namespace stagecoach
