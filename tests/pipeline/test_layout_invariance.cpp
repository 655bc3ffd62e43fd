// The contract of the mission: any layout gives the same tokens and log-probabilities as one stage, bit for bit.
#include <doctest/doctest.h>

#include <chrono>
#include <random>

#include "tests/pipeline/harness.hpp"
#include "tests/rounds.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

// True for `at_least` rounds and then, up to `at_most`, while the test has run for less than ten seconds. Under sanitizers
// at least a fifth of that, and two seconds: slow builds draw fewer cases instead of taking minutes.
class Rounds {
 public:
  Rounds(int at_least, int at_most) : at_least_(std::max(1, rounds(at_least))), at_most_(at_most) {}
  bool next() {
    ++round_;
    const auto elapsed = std::chrono::steady_clock::now() - start_;
    return round_ <= at_least_ || (round_ <= at_most_ && elapsed < std::chrono::seconds(rounds(10)));
  }
  int number() const { return round_; }

 private:
  int at_least_, at_most_, round_ = 0;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace

TEST_CASE("random layouts over loopback equal one stage bit for bit") {
  const std::uint64_t seed = std::random_device{}();
  Random random(seed);
  for (Rounds rounds(6, 60); rounds.next();) {
    const auto stages = static_cast<std::int32_t>(draw(random, 1, 8));
    const Job job = random_job(random, stages);
    const std::vector<Sample> expected = run_loopback(job, plain_layout(job));
    const auto shards = static_cast<std::int32_t>(draw(random, 0, 1) != 0 ? 1 : draw(random, 1, 8 / stages));
    const Layout layout = random_layout(random, job, stages, shards);
    INFO("seed " << seed << " round " << rounds.number() << " model " << job.model << " layout " << layout.describe());
    CHECK(difference(expected, run_loopback(job, layout)) == "");
  }
}

TEST_CASE("prompts of several segments over context shards equal one stage bit for bit") {
  const std::uint64_t seed = std::random_device{}();
  Random random(seed);
  for (Rounds rounds(3, 40); rounds.next();) {
    const auto stages = static_cast<std::int32_t>(draw(random, 1, 2));
    const Job job = random_long_job(random, stages);
    const std::vector<Sample> expected = run_loopback(job, plain_layout(job));
    const Layout layout = random_layout(random, job, stages, static_cast<std::int32_t>(draw(random, 2, 4)));
    INFO("seed " << seed << " round " << rounds.number() << " model " << job.model << " layout " << layout.describe());
    CHECK(difference(expected, run_loopback(job, layout)) == "");
  }
}

TEST_CASE("samples that share the pages of their prompt are those that it gives alone") {
  const std::uint64_t seed = std::random_device{}();
  Random random(seed);
  for (Rounds rounds(6, 40); rounds.next();) {
    const auto stages = static_cast<std::int32_t>(draw(random, 1, 3));
    Job job = random_job(random, stages);
    Job alone = job;
    alone.requests.clear();
    for (const Request& request : job.requests) {
      for (std::int32_t s = 0; s < request.num_samples; ++s) {
        Request& one = alone.requests.emplace_back(request);
        one.num_samples = 1;
        one.first_sample = s;
      }
    }
    const std::vector<Sample> expected = run_loopback(alone, plain_layout(alone));
    const Layout layout = random_layout(random, job, stages, static_cast<std::int32_t>(draw(random, 1, 2)));
    INFO("seed " << seed << " round " << rounds.number() << " model " << job.model << " layout " << layout.describe());
    CHECK(difference(expected, run_loopback(job, layout)) == "");
  }
}

TEST_CASE("every operation of a pipeline agrees with the reference") {
  const std::uint64_t seed = std::random_device{}();
  Random random(seed);
  for (Rounds rounds(2, 8); rounds.next();) {
    const Job job = random_job(random, 2, true);
    Layout layout = random_layout(random, job, 2);
    layout.checking = true;
    INFO("seed " << seed << " round " << rounds.number() << " model " << job.model << " layout " << layout.describe());
    CHECK_NOTHROW(run_loopback(job, layout));
  }
}

TEST_CASE("the reference backend keeps the contract as well") {
  const std::uint64_t seed = std::random_device{}();
  Random random(seed);
  for (Rounds rounds(2, 8); rounds.next();) {
    const Job job = random_job(random, 3, true);
    Layout plain = plain_layout(job);
    plain.backend = make_reference_backend;
    Layout layout = random_layout(random, job, 3);
    layout.backend = make_reference_backend;
    INFO("seed " << seed << " round " << rounds.number() << " model " << job.model << " layout " << layout.describe());
    CHECK(difference(run_loopback(job, plain), run_loopback(job, layout)) == "");
  }
}
