// Runs the stages of a loopback pipeline one at a time, in an order that the test chooses: every call of a mailbox or
// transport is a point where the running stage may be put aside. So schedules can be enumerated, a failure can be put
// at any call, and a deadlock is a fact instead of a time-out.
//
// Base order: a stage runs until it has polled in vain for a while, then the next one that may still get on, round
// robin. A delay at call number k of the whole run puts the running stage aside there although it could go on. Trying
// all placements of d delays is delay-bounded scheduling (Emmi, Qadeer, Rakamaric, "Delay-bounded scheduling", POPL
// 2011).
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <semaphore>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/pipeline/harness.hpp"

namespace stagecoach::test {

struct Schedule {
  std::set<std::int64_t> delays;    // numbers of calls, from 1, counted over all stages
  std::int32_t failing_stage = -1;  // this stage throws
  std::int64_t failing_call = 0;    // at its own call of this number, from 1
};

// No stage can get on, and nobody has failed.
class Deadlock : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class Interleaving final : public Instrument {
 public:
  Interleaving(std::int32_t stages, Schedule schedule);

  std::unique_ptr<Mailbox> around(std::int32_t stage, std::unique_ptr<Mailbox> mailbox) override;
  std::unique_ptr<Transport> around(std::int32_t stage, std::unique_ptr<Transport> transport) override;
  void begin(std::int32_t stage) override;
  void end(std::int32_t stage, const char* failure) override;

  // For the endpoints: before and after every call. `progress`: the call changed something for somebody.
  void before(std::int32_t stage);
  void after(std::int32_t stage, bool progress);

  // After the run.
  std::int64_t calls() const { return calls_; }
  std::int64_t calls_of(std::int32_t stage) const { return stages_[static_cast<std::size_t>(stage)]->calls; }
  bool deadlocked() const { return deadlocked_; }

 private:
  struct Stage {
    std::binary_semaphore turn{0};
    std::int64_t calls = 0;
    int in_vain = 0;  // calls without progress since anything last changed
    bool started = false, ended = false;
  };
  Stage& at(std::int32_t stage) { return *stages_[static_cast<std::size_t>(stage)]; }
  std::optional<std::int32_t> next_after(std::int32_t stage);
  void hand_over(std::int32_t from);
  void something_changed();

  Schedule schedule_;
  std::mutex starting_;
  std::int32_t started_ = 0;
  std::vector<std::unique_ptr<Stage>> stages_;
  std::int64_t calls_ = 0;
  bool deadlocked_ = false;
};

}  // namespace stagecoach::test
