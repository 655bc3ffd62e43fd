// The simulated pipeline against what can be worked out by hand.
#include <doctest/doctest.h>

#include "partition/simulation.hpp"

using namespace stagecoach;

namespace {

// Stages that take as many seconds for every microbatch, whatever is in it.
SimulatedPipeline equal_stages(std::int32_t stages, double seconds, std::int32_t chunk) {
  SimulatedPipeline pipeline;
  pipeline.model.n_layer = stages;
  DeviceSpeed speed;
  speed.microbatch_s = seconds;
  for (std::int32_t s = 0; s < stages; ++s) pipeline.stages.push_back({{s, s}, speed, {}});
  pipeline.chunks = {chunk};
  pipeline.in_flight = stages;
  return pipeline;
}

}  // namespace

TEST_CASE("n equal chunks over p stages take n + p - 1 steps") {
  for (const std::int32_t stages : {1, 2, 3, 8}) {
    for (const std::int64_t chunks : {1, 2, 7, 40}) {
      const SimulatedPipeline pipeline = equal_stages(stages, 1.0, 10);
      CHECK(simulate_ttft(pipeline, 10 * chunks) == doctest::Approx(static_cast<double>(chunks + stages - 1)));
    }
  }
}

TEST_CASE("one sequence decodes at the pace of all stages together, many at that of one") {
  SimulatedPipeline pipeline = equal_stages(4, 1.0, 10);
  Prediction p = simulate(pipeline, {10, 11, 1});
  CHECK(p.ttft_s == doctest::Approx(4.0));
  CHECK(p.decode_tokens_per_s == doctest::Approx(0.25));
  CHECK(p.bubble[0] == doctest::Approx(0.75));
  pipeline.slots = 4;
  pipeline.hold_decode = true;
  p = simulate(pipeline, {10, 101, 4});
  CHECK(p.all_prefilled_s == doctest::Approx(7.0));
  CHECK(p.decode_tokens_per_s == doctest::Approx(1.0).epsilon(0.05));
  CHECK(p.bubble[3] < 0.05);
}

TEST_CASE("microbatches in flight are limited, links take time, and a slow stage sets the pace") {
  SimulatedPipeline pipeline = equal_stages(3, 1.0, 10);
  pipeline.in_flight = 1;
  CHECK(simulate_ttft(pipeline, 40) == doctest::Approx(12.0));
  pipeline.in_flight = 3;
  pipeline.stages[1].speed.microbatch_s = 2.0;
  CHECK(simulate_ttft(pipeline, 100) == doctest::Approx(1.0 + 20.0 + 1.0));
  pipeline.stages[0].link.latency_s = 0.5;
  pipeline.stages[2].link.latency_s = 0.25;
  CHECK(simulate_ttft(pipeline, 10) == doctest::Approx(1.0 + 0.5 + 2.0 + 1.0 + 0.25));
}

TEST_CASE("all tokens are accounted for and no stage does two things at once") {
  SimulatedPipeline pipeline = equal_stages(5, 0.5, 16);
  pipeline.slots = 3;
  const JobShape job{50, 7, 8};
  const Prediction p = simulate(pipeline, job, 100000);
  std::vector<double> free_s(5, 0.0);
  for (const Busy& b : p.timeline) {
    CHECK(b.start_s >= free_s[static_cast<std::size_t>(b.stage)]);
    free_s[static_cast<std::size_t>(b.stage)] = b.end_s;
  }
  CHECK(p.timeline.size() == static_cast<std::size_t>(5 * p.microbatches));
  CHECK(p.total_s >= p.all_prefilled_s);
  CHECK(p.all_prefilled_s >= p.ttft_s);
}

TEST_CASE("48 stages take a moment") {
  SimulatedPipeline pipeline = equal_stages(48, 1e-3, 256);
  pipeline.slots = 256;
  const Prediction p = simulate(pipeline, {2048, 128, 256});
  CHECK(p.total_s > 0.0);
}

TEST_CASE("rates: reading bounds few rows, multiplying many") {
  const DeviceSpeed speed = speed_from_rates({10e9, 100e9, 2.0, 4.0});
  CHECK(speed.product.at(1) == doctest::Approx(2.0 / 10e9));
  CHECK(speed.product.at(10) == doctest::Approx(2.0 / 10e9));
  CHECK(speed.product.at(100) == doctest::Approx(200.0 / 100e9));
  CHECK_THROWS_AS(Curve({{1.0, 1.0}, {1.0, 2.0}}), std::invalid_argument);
  CHECK(Curve({{1.0, 1.0}, {3.0, 5.0}}).at(2.0) == doctest::Approx(3.0));
  CHECK(Curve({{1.0, 1.0}, {3.0, 5.0}}).at(4.0) == doctest::Approx(7.0));
}
