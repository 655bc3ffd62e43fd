// The two loops of a pipeline: stage 0 leads, every other stage follows. With context shards the first shard of stage 0
// leads and all others follow; each is one of a chain of its own, but for attention (sharded_attention.hpp).
//
// There is no distributed schedule. The leader makes microbatches and posts their headers; a follower takes a header,
// passes it on at once, receives the rows, runs them and sends them on; the last stage posts the picked tokens to the
// leader. Why this cannot deadlock: headers and tokens never wait for tensors; a receive is posted only after its
// header has arrived; no loop ever blocks in a send or receive, it polls all of them; each stage owns in_flight + 1
// residual buffers and the leader never has more than in_flight microbatches out, so that a buffer always comes free. The
// shards of a stage wait for each other within a microbatch, and all run them in the same order.
//
// Silence: while a stage waits it tells its neighbours that it lives, and it gives up with TransportError when the peer
// that it waits for has been silent for `timeout_s`; a busy peer reports between operations, so it is not accused.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/backend.hpp"
#include "runtime/request.hpp"
#include "runtime/scheduler.hpp"
#include "runtime/stage_executor.hpp"
#include "runtime/stage_trace.hpp"
#include "runtime/transport.hpp"

namespace stagecoach {

// One rank's parts; all referents must outlive the loops. Peer stage * shards + shard of `mailbox` is that shard.
// `mailbox` and `transport` may be null when there is one rank, `transport` also with one stage.
struct StageContext {
  std::int32_t stage = 0;
  std::int32_t stages = 1;
  ShardPlace shards = {};
  std::int32_t in_flight = 1;
  double timeout_s = 60.0;
  Backend* backend = nullptr;
  StageExecutor* executor = nullptr;
  Mailbox* mailbox = nullptr;
  Transport* transport = nullptr;
  TraceBuffer* trace = nullptr;                              // null: no events are kept
  std::function<std::string(std::int32_t peer)> name = {};   // for messages; empty: "stage 1"
  // Called between operations and while waiting. What it throws ends the loop. May be empty.
  std::function<void()> check = {};
};

// What a stage did, for reports.
struct StageReport {
  StageTimes times;  // from its first microbatch to the end of its last
  std::int64_t microbatches = 0;
  std::int64_t rows = 0;
  std::int64_t bytes_sent = 0;  // residuals only
  std::int64_t shard_bytes_sent = 0;  // to other shards of the stage
  std::int64_t weight_bytes = 0;
  std::int64_t kv_bytes = 0;
  std::int64_t peak_bytes = 0;  // of the backend
};

// What the leader needs from its surroundings; none of these may block.
struct LeaderHooks {
  std::function<std::optional<Request>()> next_request;        // nothing now is not the end: see `exhausted`
  std::function<bool()> exhausted;                             // no request will come any more
  std::function<void(const Scheduler::TokenEvent&)> on_token;  // may be empty
  std::function<void(Sample&&)> on_finished;
  std::function<void()> service;  // called between operations and while waiting; may be empty
};

class Pipeline;  // residual buffers and waits, shared by both loops

// The loop of stage 0. `run` may be called several times; `stop` ends the followers and gathers their reports.
class Leader {
 public:
  explicit Leader(const StageContext& context);
  ~Leader();
  Leader(const Leader&) = delete;
  Leader& operator=(const Leader&) = delete;

  // Runs until the hooks are exhausted and all is finished.
  void run(Scheduler& scheduler, const LeaderHooks& hooks);
  // To be called now and then by who takes long between `run` and `stop`: other stages wait for this one.
  void keep_alive();
  // Index = stage * shards + shard.
  std::vector<StageReport> stop();

 private:
  std::unique_ptr<Pipeline> pipeline_;
};

// The loop of every other stage; returns when the leader stops, what the leader is told too.
StageReport run_follower(const StageContext& context);

}  // namespace stagecoach
