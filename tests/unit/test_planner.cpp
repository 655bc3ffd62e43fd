// Whole plans: never slower than what others do, within budgets, and honest about what fits.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <random>

#include "partition/plan.hpp"
#include "partition/plan_report.hpp"
#include "partition/run_file.hpp"
#include "tests/rounds.hpp"

using namespace stagecoach;

namespace {

using Random = std::mt19937_64;

std::int64_t draw(Random& random, std::int64_t low, std::int64_t high) {
  return std::uniform_int_distribution<std::int64_t>(low, high)(random);
}

ModelConfig gpt2(std::int32_t blocks) {
  ModelConfig model;
  model.n_layer = blocks;
  model.n_embd = 1600;
  model.n_inner = 6400;
  model.n_head = 25;
  model.n_positions = 4096;
  return model;
}

// 16-bit weights, float32 keys and values.
DeviceLayout layout(const ModelConfig& model) {
  DeviceLayout result;
  result.matrix_bytes = [](std::int64_t in, std::int64_t out) { return in * out * 2; };
  result.own_bytes = [](const StageOperations& o) { return o.rows * o.columns * 4; };
  result.kv_page_bytes = 64LL * 2 * model.n_embd * 4;
  return result;
}

PlannerDevice device(const ModelConfig& model, double gb_s, double gflop_s) {
  return {layout(model), speed_from_rates({gb_s * 1e9, gflop_s * 1e9, 2.0, 4.0}), {}, {}};
}

PlanRequest request_for(const ModelConfig& model, std::int32_t devices) {
  PlanRequest request;
  request.model = model;
  for (std::int32_t d = 0; d < devices; ++d) request.devices.push_back(device(model, 30, 200));
  request.job = {1000, 32, 4};
  request.stages = devices;
  return request;
}

double simulated(const PlanRequest& request, const std::vector<BlockRange>& cut) {
  PlanRequest given = request;
  given.cut = cut;
  return make_plan(given).prediction.total_s;
}

}  // namespace

TEST_CASE("over random devices no cut is noticeably slower than an even or proportional one") {
  const std::uint64_t seed = std::random_device{}();
  Random random(seed);
  double sum_even = 0.0;
  double sum_memory = 0.0, worst = 0.0;
  constexpr int kRounds = test::rounds(60);
  constexpr double kNearly = 1.02;
  for (int round = 0; round < kRounds; ++round) {
    const ModelConfig model = gpt2(static_cast<std::int32_t>(draw(random, 8, 48)));
    PlanRequest request;
    request.model = model;
    const std::int64_t devices = draw(random, 2, 6);
    std::vector<double> memory;
    for (std::int64_t d = 0; d < devices; ++d) {
      const auto speed = static_cast<double>(draw(random, 1, 4));
      PlannerDevice one = device(model, 10 * speed, 100 * static_cast<double>(draw(random, 1, 4)));
      one.budget_bytes = draw(random, 8, 40) << 30;  // roomy: what others do must fit too
      memory.push_back(static_cast<double>(*one.budget_bytes));
      request.devices.push_back(one);
    }
    request.job = {draw(random, 64, 2000), draw(random, 2, 24), draw(random, 1, 8)};
    request.stages = static_cast<std::int32_t>(devices);
    request.chunks = ChunkPlan{256};
    const PipelinePlan plan = make_plan(request);
    INFO("seed " << seed << " round " << round);
    REQUIRE(plan.fits());
    const double even = simulated(request, proportional_cut(model.n_layer, std::vector<double>(memory.size(), 1.0)));
    const double by_memory = simulated(request, proportional_cut(model.n_layer, memory));
    // Cuts are chosen by their slowest stage; how a whole job then fills and drains may differ by a little.
    CHECK(plan.prediction.total_s <= even * kNearly);
    CHECK(plan.prediction.total_s <= by_memory * kNearly);
    worst = std::max(worst, plan.prediction.total_s / std::min(even, by_memory));
    sum_even += even / plan.prediction.total_s;
    sum_memory += by_memory / plan.prediction.total_s;
  }
  MESSAGE("on average " << sum_even / kRounds << " times as fast as even cuts, " << sum_memory / kRounds
                        << " times as fast as cuts in proportion to memory, at worst " << worst
                        << " of the time of the better of them");
  CHECK(sum_even / kRounds > 1.05);
}

TEST_CASE("the LM head counts: the last of equal stages gets fewer blocks") {
  PlanRequest request = request_for(gpt2(48), 2);
  request.job = {16, 200, 4};  // mostly steps of decoding, which all meet the head
  const PipelinePlan plan = make_plan(request);
  CHECK(plan.stages[0].blocks.count() > plan.stages[1].blocks.count());
  CHECK(plan.stages[0].blocks.count() <= 27);
}

TEST_CASE("budgets bind: what does not fit on one device fits on four, to the byte") {
  PlanRequest request = request_for(gpt2(48), 1);
  request.job = {4000, 2, 1};
  request.devices[0].budget_bytes = std::int64_t{2} << 30;
  request.devices[0].process_bytes = 64 << 20;
  PipelinePlan plan = make_plan(request);
  CHECK(!plan.fits());
  CHECK(!can_fit(request));
  CHECK(most_positions(request, plan, 1) == 0);
  request.devices.assign(4, request.devices[0]);
  request.stages = 4;
  plan = make_plan(request);
  REQUIRE(plan.fits());
  CHECK(can_fit(request));
  const std::int64_t most = most_positions(request, plan, 1);
  CHECK(most >= 4001);
  CHECK(most <= 4096);
  const std::int64_t sequences = most_sequences(request, plan, 4001);
  CHECK(sequences >= 1);
  const auto needed = [&](std::int64_t n) {
    std::int64_t largest = 0;
    for (const StageBytes& b : plan_bytes(request, plan, n * ((4001 + 63) / 64), n)) {
      largest = std::max(largest, b.total() + request.devices[0].process_bytes);
    }
    return largest;
  };
  CHECK(needed(sequences) <= *request.devices[0].budget_bytes);
  CHECK(needed(sequences + 1) > *request.devices[0].budget_bytes);
}

TEST_CASE("a stage with little memory gets few blocks even if it is fast") {
  PlanRequest request = request_for(gpt2(48), 2);
  request.devices[0] = device(request.model, 300, 2000);
  request.devices[0].budget_bytes = std::int64_t{1} << 30;
  request.devices[1].budget_bytes = std::int64_t{8} << 30;
  const PipelinePlan plan = make_plan(request);
  REQUIRE(plan.fits());
  CHECK(plan.stages[0].blocks.count() < 16);
  CHECK(plan.stages[0].needed_bytes() > (std::int64_t{900} << 20));  // but as many as there is room for
}

TEST_CASE("as many stages as help: one sequence is served best by one device, unless it is too small") {
  PlanRequest request = request_for(gpt2(12), 4);
  request.stages.reset();
  request.job = {16, 200, 1};
  for (PlannerDevice& d : request.devices) d.link = {1e-3, 1e-9};
  CHECK(make_plan(request).stages.size() == 1);
  request.job = {2000, 2, 8};
  CHECK(make_plan(request).stages.size() == 4);
  request.job = {16, 200, 1};
  for (PlannerDevice& d : request.devices) d.budget_bytes = std::int64_t{500} << 20;
  const PipelinePlan plan = make_plan(request);
  CHECK(plan.fits());
  CHECK(plan.stages.size() > 1);
  const std::vector<Alternative> ways = alternatives(request_for(gpt2(12), 4));
  CHECK(ways.size() == 3);  // 1 x 4, 2 x 2, 4 x 1
}

TEST_CASE("planned chunks are no slower than equal ones and never longer than what was sized") {
  PlanRequest request = request_for(gpt2(48), 8);
  request.job = {4000, 2, 1};
  const PipelinePlan plan = make_plan(request);
  CHECK(longest_chunk(plan.chunks) <= request.most_chunk);
  CHECK(simulate_ttft(plan.pipeline, 4000) <= plan.uniform_ttft_s * (1 + 1e-9));
}

TEST_CASE("context shards divide a long prompt's keys and values, and its time, but for what they exchange") {
  ModelConfig model = gpt2(1);
  model.n_positions = 131072;
  PlanRequest one = request_for(model, 1);
  one.job = {100000, 2, 1};
  one.chunks = ChunkPlan{256};
  for (PlannerDevice& d : one.devices) d.link = {2e-6, 2e-10};
  PlanRequest four = one;
  four.shards = 4;
  const PipelinePlan alone = make_plan(one), shared = make_plan(four);
  CHECK(alone.pages == 1563);
  CHECK(shared.pages == 400);  // 98 segments: 25 of 16 pages
  CHECK(alone.stages[0].bytes.weights == shared.stages[0].bytes.weights);
  CHECK(shared.stages[0].bytes.kv ==
        doctest::Approx(0.256 * static_cast<double>(alone.stages[0].bytes.kv)).epsilon(0.01));
  const double gain = alone.prediction.ttft_s / shared.prediction.ttft_s;
  CHECK(gain > 3.0);
  CHECK(gain < 4.0);
  PlanRequest slow = four;  // a slow link eats it up
  slow.devices[0].link = {1e-3, 1e-8};
  CHECK(make_plan(slow).prediction.ttft_s > shared.prediction.ttft_s);
  // What one device cannot hold.
  four.devices[0].budget_bytes = one.devices[0].budget_bytes =
      (alone.stages[0].needed_bytes() + shared.stages[0].needed_bytes()) / 2;
  CHECK(!can_fit(one));
  CHECK(can_fit(four));
  CHECK(most_positions(four, shared, 1) == doctest::Approx(131072));
}

TEST_CASE("shards beat more stages for the first token of one long prompt, and are said to") {
  ModelConfig model = gpt2(4);
  model.n_positions = 65536;
  PlanRequest request = request_for(model, 4);
  request.job = {60000, 2, 1};
  for (PlannerDevice& d : request.devices) d.link = {2e-6, 2e-10};
  bool with_shards = false;
  for (const Alternative& way : alternatives(request)) {
    CHECK(way.replicas * way.stages * way.shards == 4);
    with_shards = with_shards || way.shards > 1;
  }
  CHECK(with_shards);
  request.job.prompt_tokens = 500;  // less than a segment: nothing to share
  for (const Alternative& way : alternatives(request)) CHECK(way.shards == 1);
}

TEST_CASE("what shards exchange, counted row by row") {
  ModelConfig model = gpt2(1);
  for (const std::int32_t shards : {1, 2, 3}) {
    const ShardCost cost{shards, {}, 1024, 2};
    double expected = 0.0;
    for (std::int64_t p = 900; p < 900 + 3000; ++p) {
      expected += (shards - 1) * (3.0 * 1600 * 2 + static_cast<double>(p / 1024 + 1) / shards * 4 * (1600 + 50));
    }
    CHECK(exchange_bytes(model, prompt_chunk(900, 3000), cost) == doctest::Approx(expected));
  }
  // Queries move less than keys and values unless each shard has over 2048 rows of the chunk, of a long prompt.
  for (const std::int64_t rows : {256, 8192}) {
    const MicrobatchWork chunk = prompt_chunk(1000000 - rows, rows);
    const ShardCost cost{2, {}, 1024, 4};
    CHECK((exchange_bytes(model, chunk, cost) < ring_bytes(model, chunk, cost)) == (rows / 2 < 2048));
  }
}

TEST_CASE("48 stages are planned in a moment") {
  PlanRequest request = request_for(gpt2(48), 48);
  request.job = {4000, 64, 48};
  const std::clock_t start = std::clock();
  CHECK(make_plan(request).stages.size() == 48);
  CHECK(std::clock() - start < 60 * CLOCKS_PER_SEC);
}

TEST_CASE("a written plan is a run file with the same stages, chunks and budgets") {
  PlanReport report;
  report.model = "it's a: model";
  report.dtype = "float16";
  report.kv_dtype = "float32";
  report.request = request_for(gpt2(48), 3);
  report.request.devices[1].budget_bytes = std::int64_t{4} << 30;
  report.plan = make_plan(report.request);
  report.device_names.assign(3, "a \"device\" <&>");
  const RunFile file = parse_run_file(plan_run_file(report), "r.yaml");
  REQUIRE(file.stages.has_value());
  REQUIRE(file.stages->size() == 3);
  for (std::size_t s = 0; s < 3; ++s) {
    CHECK((*file.stages)[s].blocks == report.plan.stages[s].blocks);
    CHECK((*file.stages)[s].memory_bytes == report.plan.stages[s].budget_bytes);
  }
  const auto setting = [&](const std::string& key) {
    const auto found = std::ranges::find(file.settings, key, &Setting::key);
    return found == file.settings.end() ? std::string() : found->value;
  };
  CHECK(setting("model") == report.model);
  CHECK(setting("in-flight") == "3");
  CHECK(setting("chunk-tokens").starts_with(fmt::format("{}", report.plan.chunks.front())));
  CHECK(plan_json(report).find("\"a \\\"device\\\" <&>\"") != std::string::npos);
  CHECK(plan_svg(report).find("it's a: model") != std::string::npos);
  CHECK(plan_text(report).find("budget") != std::string::npos);
}
