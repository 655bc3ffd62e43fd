// The two loops under every order of their calls with up to one or two delays, and with a failure at every call: the
// results are always the same, and every run ends.
#include <doctest/doctest.h>

#include <chrono>
#include <exception>
#include <random>

#include "tests/pipeline/interleaving.hpp"
#include "tests/rounds.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

// Small enough for thousands of runs: chunks, decode, samples that fork, a score, and more requests than slots.
Job small_job(std::int32_t stages) {
  Job job;
  job.model = "synthetic:gpt2,n_layer=" + std::to_string(stages) +
              ",n_head=1,n_embd=2,n_inner=2,n_positions=8,vocab_size=5,seed=3,dtype=float32";
  const auto add = [&job](std::vector<std::int32_t> tokens, std::int32_t max_new) -> Request& {
    Request& request = job.requests.emplace_back();
    request.index = static_cast<std::int64_t>(job.requests.size()) - 1;
    request.tokens = std::move(tokens);
    request.max_new_tokens = max_new;
    request.sampling.temperature = 1.0;
    request.logprobs = true;
    return request;
  };
  add({1, 2, 3}, 2);
  add({4, 0}, 2).num_samples = 2;
  add({2, 3, 1}, 1).score_from = 1;
  return job;
}

Layout small_layout(std::int32_t stages, std::int32_t in_flight) {
  Layout layout;
  for (std::int32_t s = 0; s < stages; ++s) layout.stages.push_back({s, s});
  layout.chunk_tokens = 2;
  layout.in_flight = in_flight;
  layout.slots = 2;
  layout.backend = make_reference_backend;
  layout.mode = LoopbackMode::kRendezvous;
  return layout;
}

struct Case {
  Case(std::int32_t s, std::int32_t f)
      : stages(s), in_flight(f), job(small_job(s)), layout(small_layout(s, f)), expected(run_loopback(job, plain())) {}

  Layout plain() const {
    Layout one = plain_layout(job);
    one.backend = make_reference_backend;
    return one;
  }
  // What went wrong with this schedule; nothing when the samples are right. `calls` is that of the run.
  std::string run(const Schedule& schedule, std::int64_t* calls = nullptr) const {
    Interleaving order(stages, schedule);
    std::string what;
    try {
      what = difference(expected, run_loopback(job, layout, &order));
    } catch (const std::exception& e) {
      what = e.what();
    }
    if (order.deadlocked()) what = "deadlock";
    if (calls != nullptr) *calls = order.calls();
    return what;
  }

  std::int32_t stages, in_flight;
  Job job;
  Layout layout;
  std::vector<Sample> expected;
};

// Calls from one to the next that is tried.
std::int64_t every() {
  return slow_tests() ? 1 : 5 / rounds(5);
}

class Seconds {
 public:
  explicit Seconds(int seconds)
      : end_(std::chrono::steady_clock::now() + std::chrono::milliseconds(rounds(seconds * 1000))) {}
  bool left() const { return std::chrono::steady_clock::now() < end_; }

 private:
  std::chrono::steady_clock::time_point end_;
};

}  // namespace

TEST_CASE("a delay at any call of stages 1 to 6, in flight 1 to 8") {
  const std::uint64_t seed = std::random_device{}();
  INFO("seed " << seed);
  Random random(seed);
  const Seconds budget(8);
  std::int64_t runs = 0;
  for (std::int32_t stages = 1; stages <= 6; ++stages) {
    for (std::int32_t in_flight = 1; in_flight <= 8; ++in_flight) {
      const Case c(stages, in_flight);
      std::int64_t calls = 0;
      INFO("stages " << stages << " in flight " << in_flight);
      REQUIRE(c.run({}, &calls) == "");
      const bool all = slow_tests() || (stages <= 2 && in_flight <= 2);
      for (std::int64_t i = 1; i <= (all ? calls : 40) && (all || budget.left()); i += every(), ++runs) {
        const std::int64_t delay = all ? i : draw(random, 1, calls);
        INFO("delay at call " << delay << " of " << calls);
        REQUIRE(c.run({{delay}, -1, 0}) == "");
      }
    }
  }
  MESSAGE(runs << " schedules");
}

TEST_CASE("many delays at once") {
  const std::uint64_t seed = std::random_device{}();
  INFO("seed " << seed);
  Random random(seed);
  std::int64_t runs = 0;
  // Every pair of calls of the smallest pipeline; any number of delays, by chance, of all others.
  if (slow_tests()) {
    const Case c(2, 1);
    std::int64_t calls = 0;
    REQUIRE(c.run({}, &calls) == "");
    for (std::int64_t first = 1; first <= calls; ++first) {
      for (std::int64_t second = first + 1; second <= calls + 3; ++second, ++runs) {
        INFO("delays at calls " << first << " and " << second << " of " << calls);
        REQUIRE(c.run({{first, second}, -1, 0}) == "");
      }
    }
  }
  for (const Seconds budget(slow_tests() ? 120 : 6); budget.left(); ++runs) {
    const Case c(static_cast<std::int32_t>(draw(random, 1, 6)), static_cast<std::int32_t>(draw(random, 1, 8)));
    std::int64_t calls = 0;
    REQUIRE(c.run({}, &calls) == "");
    for (int round = 0; round < 20; ++round) {
      Schedule schedule;
      const std::int64_t one_in = draw(random, 2, 60);
      for (std::int64_t call = 1; call <= 2 * calls; ++call) {
        if (draw(random, 1, one_in) == 1) schedule.delays.insert(call);
      }
      INFO("stages " << c.stages << " in flight " << c.in_flight << " a delay at one call in " << one_in << ", round "
                     << round);
      REQUIRE(c.run(schedule) == "");
    }
  }
  MESSAGE(runs << " schedules");
}

TEST_CASE("a failure at any call of any stage ends all stages and is what the run reports") {
  const std::uint64_t seed = std::random_device{}();
  INFO("seed " << seed);
  Random random(seed);
  const Seconds budget(6);
  std::int64_t runs = 0;
  for (std::int32_t stages = 2; stages <= 6; ++stages) {
    for (std::int32_t in_flight = 1; in_flight <= 8; ++in_flight) {
      const Case c(stages, in_flight);
      Interleaving order(stages, {});
      REQUIRE(difference(c.expected, run_loopback(c.job, c.layout, &order)) == "");
      for (std::int32_t stage = 0; stage < stages; ++stage) {
        const std::int64_t calls = order.calls_of(stage);
        const bool all = slow_tests() || (stages == 2 && in_flight == 2);
        for (std::int64_t i = 1; i <= (all ? calls : 8) && (all || budget.left()); i += every(), ++runs) {
          const std::int64_t call = all ? i : draw(random, 1, calls);
          INFO("stages " << stages << " in flight " << in_flight << " failing stage " << stage << " call " << call);
          REQUIRE(c.run({{}, stage, call}) == "injected failure");
        }
      }
    }
  }
  MESSAGE(runs << " failures");
}

TEST_CASE("a pipeline that would deadlock is found out") {
  // A follower that never posts its receive: what rendezvous mode is for.
  class Deaf final : public Transport {
   public:
    explicit Deaf(std::unique_ptr<Transport> inner) : inner_(std::move(inner)) {}
    Ticket send(Tensor tensor) override { return inner_->send(tensor); }
    Ticket receive(Tensor) override { return 0; }
    bool done(Ticket ticket) override { return inner_->done(ticket); }
    bool abandon() noexcept override { return inner_->abandon(); }

   private:
    std::unique_ptr<Transport> inner_;
  };
  class WithDeafStage final : public Instrument {
   public:
    explicit WithDeafStage(Interleaving& order) : order_(order) {}
    std::unique_ptr<Mailbox> around(std::int32_t stage, std::unique_ptr<Mailbox> mailbox) override {
      return order_.around(stage, std::move(mailbox));
    }
    std::unique_ptr<Transport> around(std::int32_t stage, std::unique_ptr<Transport> transport) override {
      if (stage == 1) transport = std::make_unique<Deaf>(std::move(transport));
      return order_.around(stage, std::move(transport));
    }
    void begin(std::int32_t stage) override { order_.begin(stage); }
    void end(std::int32_t stage, const char* failure) override { order_.end(stage, failure); }

   private:
    Interleaving& order_;
  };
  const Case c(3, 2);
  Interleaving order(3, {});
  WithDeafStage deaf(order);
  CHECK_THROWS(run_loopback(c.job, c.layout, &deaf));
  CHECK(order.deadlocked());
}
