#include <doctest/doctest.h>

#include <cmath>
#include <string>

#include "runtime/json.hpp"
#include "runtime/metrics.hpp"

using namespace stagecoach;

namespace {

constexpr std::int64_t kMs = 1'000'000;

double number(const Json& object, const char* key) {
  const Json* value = object.find(key);
  REQUIRE(value != nullptr);
  if (const std::int64_t* whole = value->integer()) return static_cast<double>(*whole);
  REQUIRE(value->real() != nullptr);
  return *value->real();
}

Request request_of(std::int64_t index, std::size_t prompt, std::int32_t score_from = 0) {
  Request request;
  request.index = index;
  request.tokens.resize(prompt);
  request.score_from = score_from;
  return request;
}

Sample sample_of(std::int64_t index, std::int32_t sample, std::size_t tokens, std::size_t logprobs = 0) {
  Sample s;
  s.index = index;
  s.sample = sample;
  s.tokens.resize(tokens);
  s.logprobs.resize(logprobs);
  return s;
}

bool near(double value, double expected) {
  return std::abs(value - expected) <= Histogram::kRelativeError * expected + 1e-12;
}

}  // namespace

TEST_CASE("first tokens count from when the prompt was taken, later ones from the sample's one before") {
  RunMeter meter;
  Request part = request_of(1, 7);
  for (const Request& request : {request_of(0, 5), part}) meter.given(request);
  part.first_sample = 1;
  meter.given(part);  // is the same prompt
  meter.taken(request_of(0, 5), 0);
  meter.taken(request_of(1, 7), 10 * kMs);
  meter.token({0, 3, 0}, 40 * kMs);   // 40 ms after it was taken
  meter.token({1, 3, 0}, 90 * kMs);   // 80 ms
  meter.token({1, 3, 1}, 95 * kMs);   // another sample's first: of no prompt the first
  meter.token({0, 3, 0}, 100 * kMs);  // 60 ms after the one before
  meter.token({1, 3, 1}, 98 * kMs);   // 3 ms
  meter.finished(sample_of(0, 0, 2, 2));
  meter.finished(sample_of(1, 0, 1));
  meter.finished(sample_of(1, 1, 2));
  CHECK(meter.counts().prompts == 2);
  CHECK(meter.counts().prompt_tokens == 12);
  CHECK(meter.counts().samples == 3);
  CHECK(meter.counts().generated_tokens == 5);
  CHECK(meter.counts().scored_tokens == 0);
  CHECK(meter.first_token().count() == 2);
  CHECK(meter.first_token().max() == doctest::Approx(0.080));
  CHECK(near(meter.first_token().quantile(0.5), 0.040));
  CHECK(meter.between_tokens().count() == 2);
  CHECK(meter.between_tokens().max() == doctest::Approx(0.060));
  CHECK(near(meter.between_tokens().quantile(0.5), 0.003));

  // The same numbers once more, as repeats of a measurement have them: nothing is left of the first time.
  meter.taken(request_of(0, 5), 1000 * kMs);
  meter.token({0, 3, 0}, 1002 * kMs);
  CHECK(meter.first_token().count() == 3);
  CHECK(meter.between_tokens().count() == 2);
}

TEST_CASE("scored texts have tokens and no latencies") {
  RunMeter meter;
  for (std::int32_t window = 0; window < 3; ++window) {
    Request request = request_of(0, 9, 1);
    request.first_sample = window;
    meter.given(request);
    meter.taken(request, 0);
  }
  CHECK(meter.counts().prompts == 1);
  CHECK(meter.counts().prompt_tokens == 27);
  meter.finished(sample_of(0, 0, 0, 8));
  CHECK(meter.counts().scored_tokens == 8);
  CHECK(meter.counts().generated_tokens == 0);
  RunFigures run;
  run.wall_s = 2.0;
  const Json root = parse_json(metrics_json(run, meter, {}));
  CHECK(number(root, "tokens_per_s") == 4.0);
  CHECK(root.find("ttft_s")->find("p50")->is_null());
  CHECK(root.find("itl_s")->find("max")->is_null());
  CHECK(number(*root.find("itl_s"), "count") == 0);
  CHECK(root.find("ranks")->array()->empty());
}

TEST_CASE("what several pipelines counted adds up, wherever it was counted") {
  RunMeter one, two;
  for (int i = 0; i < 100; ++i) {
    RunMeter& meter = i % 3 == 0 ? one : two;
    meter.given(request_of(i, 4));
    meter.taken(request_of(i, 4), 0);
    meter.token({i, 1, 0}, (i + 1) * kMs);
    meter.token({i, 1, 0}, (3 * i + 2) * kMs);
    meter.finished(sample_of(i, 0, 2));
  }
  wire::Writer out;
  two.put(out);
  wire::Reader in(out.bytes());
  one.merge(RunMeter::read(in));
  in.end();
  CHECK(one.counts().prompts == 100);
  CHECK(one.counts().prompt_tokens == 400);
  CHECK(one.counts().samples == 100);
  CHECK(one.counts().generated_tokens == 200);
  CHECK(one.first_token().count() == 100);
  CHECK(one.first_token().max() == doctest::Approx(0.100));
  CHECK(near(one.first_token().quantile(0.5), 0.050));
  CHECK(near(one.between_tokens().quantile(0.9), 0.179));
  for (std::size_t bytes = 0; bytes < out.bytes().size(); bytes += 7) {
    wire::Reader cut(out.bytes().first(bytes));
    CHECK_THROWS_AS(RunMeter::read(cut), WireError);
  }
}

TEST_CASE("the file is one JSON object, whatever names hold") {
  RunMeter meter;
  meter.taken(request_of(0, 1), 0);
  for (int i = 1; i <= 1000; ++i) meter.token({0, 1, 0}, i * i * kMs);
  meter.finished(sample_of(0, 0, 1000));
  RunFigures run{"generate", "a \"model\"\n\xff", "float16", "float32", 3, 2, 4, 4.0, 77};
  StageFigures first{0, 0, 0, 3, "h\\ost", "cpu", {}};
  first.report.times = {3'000'000'000, 500'000'000, 1'000'000'000};
  first.report.microbatches = 10;
  first.report.rows = 40;
  first.report.bytes_sent = 5'000'000'000;
  first.report.weight_bytes = 6;
  first.report.kv_bytes = 7;
  first.report.peak_bytes = 8;
  first.report.shard_bytes_sent = 9;
  const StageFigures second{1, 2, 1, 0, "host", "cuda", {}};  // never had a microbatch
  const std::string text = metrics_json(run, meter, std::vector{first, second});
  CHECK(text.back() == '\n');
  const Json root = parse_json(text);
  CHECK(*root.find("command")->string() == "generate");
  CHECK(*root.find("model")->string() == "a \"model\"\n\xef\xbf\xbd");
  CHECK(number(root, "stages") == 2);
  CHECK(number(root, "earlier_tokens") == 77);
  CHECK(number(root, "generated_tokens") == 1000);
  CHECK(number(root, "tokens_per_s") == 250);
  // Between tokens: 3, 5, ... 1999 ms.
  CHECK(number(*root.find("itl_s"), "count") == 999);
  CHECK(near(number(*root.find("itl_s"), "p50"), 1.001));
  CHECK(near(number(*root.find("itl_s"), "p90"), 1.801));
  CHECK(near(number(*root.find("itl_s"), "p99"), 1.981));
  CHECK(number(*root.find("itl_s"), "max") == doctest::Approx(1.999));
  CHECK(near(number(*root.find("ttft_s"), "p99"), 0.001));
  const Json::Array& ranks = *root.find("ranks")->array();
  REQUIRE(ranks.size() == 2);
  CHECK(*ranks[0].find("host")->string() == "h\\ost");
  CHECK(*ranks[1].find("device")->string() == "cuda");
  CHECK(number(ranks[1], "rank") == 1);
  CHECK(number(ranks[1], "stage") == 1);
  CHECK(number(ranks[1], "replica") == 2);
  CHECK(number(root, "replicas") == 3);
  CHECK(number(root, "context_shards") == 4);
  CHECK(number(ranks[0], "shard") == 3);
  CHECK(number(ranks[0], "shard_bytes_sent") == 9);
  CHECK(number(ranks[1], "bubble") == 0);
  const std::pair<const char*, double> expected[] = {
      {"busy_s", 3},   {"schedule_s", 0.5}, {"idle_s", 1},       {"bubble", 0.25},     {"weights_bytes", 6},
      {"kv_bytes", 7}, {"peak_bytes", 8},   {"bytes_sent", 5e9}, {"microbatches", 10}, {"rows", 40}};
  for (const auto& [key, value] : expected) {
    CAPTURE(key);
    CHECK(number(ranks[0], key) == value);
  }
}
