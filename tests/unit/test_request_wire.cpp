// Requests and samples come back from their bytes as they were; bytes that were cut or never written are refused.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "runtime/request_wire.hpp"

using namespace stagecoach;

namespace {

std::mt19937 fresh_random() {
  const unsigned seed = std::random_device{}();
  MESSAGE("seed ", seed);
  return std::mt19937(seed);
}

std::vector<std::int32_t> random_tokens(std::mt19937& random) {
  std::vector<std::int32_t> tokens(random() % 20);
  for (std::int32_t& token : tokens) token = static_cast<std::int32_t>(random());
  return tokens;
}

Request random_request(std::mt19937& random) {
  Request request;
  request.index = static_cast<std::int64_t>(random()) << 20;
  request.tokens = random_tokens(random);
  request.max_new_tokens = static_cast<std::int32_t>(random());
  request.ignore_eos = random() % 2 == 0;
  request.logprobs = random() % 2 == 0;
  request.sampling = {static_cast<double>(random() % 100) / 7.0, static_cast<std::int32_t>(random() % 100),
                      static_cast<double>(random() % 100) / 99.0, 1.0 + static_cast<double>(random() % 100) / 3.0};
  request.seed = (std::uint64_t{random()} << 32) | random();
  request.num_samples = static_cast<std::int32_t>(random() % 1000);
  request.first_sample = static_cast<std::int32_t>(random() % 1000);
  for (auto n = random() % 3; n > 0; --n) request.stop.emplace_back(random() % 9, static_cast<char>(random()));
  request.score_from = static_cast<std::int32_t>(random() % 3);
  return request;
}

template <typename T>
std::vector<std::byte> bytes_of(const T& value) {
  wire::Writer out;
  put(out, value);
  return out.take();
}

}  // namespace

TEST_CASE("requests, without what stays at the desk") {
  std::mt19937 random = fresh_random();
  for (int round = 0; round < 300; ++round) {
    Request request = random_request(random);
    request.id = "\"mine\"";
    request.prompt = "text";
    const std::vector<std::byte> bytes = bytes_of(request);
    wire::Reader in(bytes);
    const Request read = read_request(in);
    in.end();
    CHECK(!read.id);
    CHECK(!read.prompt);
    CHECK(read.index == request.index);
    CHECK(read.tokens == request.tokens);
    CHECK(read.max_new_tokens == request.max_new_tokens);
    CHECK(read.ignore_eos == request.ignore_eos);
    CHECK(read.logprobs == request.logprobs);
    CHECK(read.sampling == request.sampling);
    CHECK(read.seed == request.seed);
    CHECK(read.num_samples == request.num_samples);
    CHECK(read.first_sample == request.first_sample);
    CHECK(read.stop == request.stop);
    CHECK(read.score_from == request.score_from);
    wire::Reader cut{std::span(bytes).first(random() % bytes.size())};
    CHECK_THROWS_AS(read_request(cut), WireError);
  }
}

TEST_CASE("samples") {
  std::mt19937 random = fresh_random();
  for (int round = 0; round < 300; ++round) {
    Sample sample;
    sample.index = static_cast<std::int64_t>(random()) << 20;
    sample.sample = static_cast<std::int32_t>(random());
    sample.prompt_tokens = static_cast<std::int32_t>(random());
    sample.tokens = random_tokens(random);
    for (auto n = random() % 20; n > 0; --n) sample.logprobs.push_back(-static_cast<float>(random()) / 3.0F);
    sample.finish = static_cast<FinishReason>(random() % 3);
    sample.text_bytes = static_cast<std::int64_t>(random()) - 7;
    const std::vector<std::byte> bytes = bytes_of(sample);
    wire::Reader in(bytes);
    const Sample read = read_sample(in);
    in.end();
    CHECK(read.index == sample.index);
    CHECK(read.sample == sample.sample);
    CHECK(read.prompt_tokens == sample.prompt_tokens);
    CHECK(read.tokens == sample.tokens);
    CHECK(read.logprobs == sample.logprobs);
    CHECK(read.finish == sample.finish);
    CHECK(read.text_bytes == sample.text_bytes);
    wire::Reader cut{std::span(bytes).first(random() % bytes.size())};
    CHECK_THROWS_AS(read_sample(cut), WireError);
  }
}

TEST_CASE("what was never written is refused") {
  Request request;
  request.sampling.temperature = std::numeric_limits<double>::quiet_NaN();
  const std::vector<std::byte> options = bytes_of(request);
  wire::Reader in(options);
  CHECK_THROWS_AS(read_request(in), WireError);
  Sample sample;
  sample.finish = static_cast<FinishReason>(3);
  const std::vector<std::byte> finish = bytes_of(sample);
  wire::Reader of_sample(finish);
  CHECK_THROWS_AS(read_sample(of_sample), WireError);
}
