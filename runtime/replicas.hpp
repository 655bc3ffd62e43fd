// Several pipelines (replicas) that share the requests of one job.
//
// The first one's leader, who has the desk, deals requests out, also to itself; leaders of the others, its helpers,
// send samples back. A replica has what its scheduler took and a few requests more, and the next one goes to whoever
// has the fewest samples under way: so a slow replica gets fewer, and delays only what it has. Which replica a request
// goes to changes no token. Nothing here blocks; messages go by a Mailbox whose peers are the places of all stages
// (grid.hpp).
//
// Silence: both sides send something every second or more often, however busy they are, and give up with TransportError
// when they hear nothing from the other for `timeout_s`.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "runtime/pipeline.hpp"
#include "runtime/request.hpp"
#include "runtime/silence.hpp"
#include "runtime/transport.hpp"

namespace stagecoach {

struct OfficeOptions {
  Mailbox* mailbox = nullptr;
  double timeout_s = 60.0;
  std::function<std::string(std::int32_t place)> name;  // for messages
};

// On the first replica's leader.
class Dealer {
 public:
  // `leaders`: places of all replicas' leaders, its own first. `desk`: where requests come from and samples go, all of
  // its hooks. `ahead`: requests that a replica has beside those that its scheduler took. `draining`: from when on what
  // no scheduler took is dropped; may be empty.
  Dealer(OfficeOptions office, const std::vector<std::int32_t>& leaders, std::int32_t ahead, LeaderHooks desk,
         std::function<bool()> draining);

  // For the loop of the first replica; refer to this.
  LeaderHooks hooks();
  // Deals and collects; called by those hooks, and to be called now and then after the loop.
  void service();
  // Tells the helpers that no more will come. `waiting` is called until they were told.
  void end(const std::function<void()>& waiting);
  // How many samples each replica delivered.
  const std::vector<std::int64_t>& delivered() const { return delivered_; }

 private:
  struct Replica {
    std::int32_t place = 0;
    std::int64_t given = 0, taken = 0;  // requests; the difference waits there
    std::int64_t under_way = 0;         // samples
    std::int64_t dropped = 0;           // of these, as it has told
    Listening listening;
    std::vector<Request> to_send;
  };

  void collect();
  void deal();
  void send(bool also_signs);
  void drop();
  void deliver(std::size_t replica, Sample&& sample);
  Replica* next_in_turn();

  OfficeOptions office_;
  std::int32_t ahead_;
  LeaderHooks desk_;
  std::function<bool()> draining_;
  std::vector<Replica> replicas_;
  std::vector<std::int64_t> delivered_;
  std::deque<Request> own_;  // dealt to the first replica
  bool dropped_ = false;
  std::chrono::steady_clock::time_point next_look_{}, next_sign_{};
};

// The loop of another replica's leader: returns when the dealer, at `dealer`, ends it. `around` may put something
// around the hooks of the loop.
void help(Leader& leader, Scheduler& scheduler, const OfficeOptions& office, std::int32_t dealer,
          const std::function<void(LeaderHooks&)>& around = {});

}  // namespace stagecoach
