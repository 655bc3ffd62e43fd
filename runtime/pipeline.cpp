#include "runtime/pipeline.hpp"

#include <fmt/format.h>

#include <cstring>
#include <deque>
#include <memory>
#include <type_traits>

#include "runtime/pipeline_parts.hpp"

namespace stagecoach {
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
