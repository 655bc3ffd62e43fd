#include <doctest/doctest.h>

#include <array>
#include <random>

#include "runtime/random.hpp"
#include "runtime/slot_sampler.hpp"

using namespace stagecoach;

namespace {

SlotCommand sampling_of(std::int32_t slot, const SamplingOptions& options, std::uint64_t seed, std::uint32_t sample) {
  SlotCommand command{SlotCommand::Kind::kSampling, slot};
  command.sampling = {options, seed, sample};
  return command;
}

const std::array kFlat{1.0F, 0.9F, 0.8F, 0.7F, -0.5F};

}  // namespace

TEST_CASE("a fresh slot is greedy, a dropped one is fresh") {
  SlotSampler sampler(2, 5);
  const Row row{0, 1, 3, kRowSample};
  CHECK(sampler.pick(row, kFlat) == PickedToken{1, 0, 0.0F});
  sampler.apply(std::vector{sampling_of(1, {0.0, 0, 1.0, 3.0}, 0, 0)});
  sampler.feed(std::vector<Row>{{0, 1, 0, 0}, {0, 1, 1, 0}});
  CHECK(sampler.pick(row, kFlat).token == 1);
  sampler.apply(std::vector{SlotCommand{SlotCommand::Kind::kDrop, 1}});
  CHECK(sampler.pick(row, kFlat).token == 0);
}

TEST_CASE("a fork knows the tokens of its source, and goes its own way") {
  SlotSampler sampler(3, 5);
  const SamplingOptions penalty{0.0, 0, 1.0, 3.0};
  sampler.apply(std::vector{sampling_of(0, penalty, 0, 0)});
  sampler.feed(std::vector<Row>{{0, 0, 0, 0}, {1, 0, 1, 0}});
  SlotCommand fork{SlotCommand::Kind::kFork, 2};
  fork.source = 0;
  sampler.apply(std::vector{fork, sampling_of(2, penalty, 0, 1)});
  sampler.feed(std::vector<Row>{{2, 2, 2, 0}});
  CHECK(sampler.pick({0, 2, 2, kRowSample}, kFlat).token == 3);
  CHECK(sampler.pick({0, 0, 2, kRowSample}, kFlat).token == 2);
  // Tokens -0.5 * 3: negative logits fall as well.
  sampler.feed(std::vector<Row>{{4, 2, 3, 0}, {3, 2, 4, 0}});
  CHECK(sampler.pick({0, 2, 4, kRowSample}, kFlat).token == 0);
}

TEST_CASE("the random number is that of seed, sample and the new token's position") {
  std::mt19937_64 random(std::random_device{}());
  SlotSampler sampler(1, 5);
  Sampler plain;
  const SamplingOptions options{1.5, 0, 1.0, 1.0};
  for (int round = 0; round < 300; ++round) {
    const std::uint64_t seed = random();
    const auto sample = static_cast<std::uint32_t>(random());
    const auto position = static_cast<std::int32_t>(random() % 100000);
    sampler.apply(std::vector{sampling_of(0, options, seed, sample)});
    const PickedToken picked = sampler.pick({0, 0, position, kRowSample | kRowLogprob}, kFlat);
    CHECK(picked.token ==
          plain.pick(kFlat, options, {}, uniform(seed, sample, static_cast<std::uint32_t>(position) + 1)));
    CHECK(picked.logprob == log_probability(kFlat, picked.token));
  }
}

TEST_CASE("scoring gives the target's log-probability, whatever the slot's sampling") {
  SlotSampler sampler(1, 5);
  sampler.apply(std::vector{sampling_of(0, {0.7, 2, 0.5, 2.0}, 1, 1)});
  CHECK(sampler.pick({0, 0, 0, kRowScore, 3}, kFlat) == PickedToken{0, 3, log_probability(kFlat, 3)});
}

TEST_CASE("a summary of the logits gives the same answers; only an open top-k over many tokens needs all of them") {
  std::mt19937_64 random(std::random_device{}());
  constexpr std::int32_t kVocab = 400;
  SlotSampler sampler(1, kVocab);
  const auto below = [&](int end) { return static_cast<std::int32_t>(random() % static_cast<std::uint64_t>(end)); };
  for (int round = 0; round < 500; ++round) {
    std::vector<float> logits(kVocab);
    for (float& logit : logits) logit = 0.25F * static_cast<float>(below(100) - 50);  // ties
    const SamplingOptions options{0.5 * below(3), below(300), below(2) == 0 ? 1.0 : 0.6, 1.0 + 0.5 * below(3)};
    sampler.apply(std::vector{SlotCommand{SlotCommand::Kind::kDrop, 0}, sampling_of(0, options, random(), 0)});
    sampler.feed(std::vector<Row>{{below(kVocab), 0, 0, 0}, {below(kVocab), 0, 1, 0}});
    const Row row{0, 0, 2, below(4) == 0 ? kRowScore : kRowSample | kRowLogprob, below(kVocab)};
    const std::optional<LogitsQuery> query = sampler.query(row);
    const bool sampled = row.flags != kRowScore;
    const bool wide = options.top_k == 0 || options.top_k > kMostTopLogits;
    REQUIRE(query.has_value() == !(sampled && options.temperature > 0.0 && wide));
    if (!query) continue;
    std::vector<std::byte> summary(static_cast<std::size_t>(summary_bytes(*query)));
    const Tensor view = make_tensor(logits.data(), DType::kFloat32, 1, kVocab);
    summarize_on_host(view, std::span(&*query, 1), summary.data());
    const std::byte* at = summary.data();
    const PickedToken picked = sampler.pick(row, read_summary(at, *query));
    CHECK(at == summary.data() + summary.size());
    const PickedToken expected = sampler.pick(row, logits);
    CHECK(picked.token == expected.token);
    CHECK(picked.logprob == doctest::Approx(expected.logprob).epsilon(1e-6));
  }
}

TEST_CASE("a small vocabulary is summarised whole") {
  SlotSampler sampler(1, 5);
  for (const std::int32_t top_k : {0, 3, 300}) {
    sampler.apply(std::vector{sampling_of(0, {0.7, top_k, 0.9, 1.0}, 1, 1)});
    CHECK(sampler.query({0, 0, 0, kRowSample})->top == (top_k == 3 ? 3 : 5));
  }
}

TEST_CASE("what no scheduler sends is refused") {
  SlotSampler sampler(1, 5);
  CHECK_THROWS_AS(sampler.apply(std::vector{SlotCommand{SlotCommand::Kind::kDrop, 1}}), WireError);
  CHECK_THROWS_AS(sampler.pick({0, 0, 0, kRowScore, 5}, kFlat), WireError);
  CHECK_THROWS_AS(sampler.query({0, 0, 0, kRowScore, 5}), WireError);
  sampler.apply(std::vector{sampling_of(0, {0.0, 0, 1.0, 3.0}, 0, 0)});
  CHECK_THROWS_AS(sampler.feed(std::vector<Row>{{5, 0, 0, 0}}), WireError);
  CHECK_THROWS_AS(sampler.feed(std::vector<Row>{{0, -1, 0, 0}}), WireError);
}
