// What sampling keeps of random logits is what Hugging Face's processors keep, and tokens are drawn with those
// probabilities.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "runtime/random.hpp"
#include "runtime/sampler.hpp"
#include "tests/golden/golden_json.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

using Random = std::mt19937_64;

std::string describe(const SamplingOptions& o, std::size_t vocabulary) {
  return fmt::format("{} logits, temperature {}, top_k {}, top_p {}, repetition_penalty {}", vocabulary, o.temperature,
                     o.top_k, o.top_p, o.repetition_penalty);
}

struct Reference {
  std::vector<double> probabilities;  // by id; 0 for what cannot be drawn
  double margin = 1.0;                // how far the nearest token was from being in instead of out, or the reverse
};

Reference reference(const std::vector<float>& logits, const SamplingOptions& options,
                    const std::vector<std::int32_t>& seen) {
  std::vector<double> scores(logits.begin(), logits.end());
  for (const std::int32_t id : seen) {
    double& score = scores[static_cast<std::size_t>(id)];
    score = score < 0.0 ? score * options.repetition_penalty : score / options.repetition_penalty;
  }
  for (double& score : scores) score /= options.temperature;
  std::vector<std::size_t> order;
  for (std::size_t id = 0; id < scores.size(); ++id) order.push_back(id);
  std::ranges::stable_sort(order, [&](std::size_t a, std::size_t b) { return scores[a] > scores[b]; });

  Reference result;
  std::size_t kept = order.size();
  if (options.top_k > 0) kept = std::min(kept, static_cast<std::size_t>(options.top_k));
  const auto note_gap = [&](std::size_t count) {
    if (count < order.size()) {
      result.margin = std::min(result.margin, scores[order[count - 1]] - scores[order[count]]);
    }
  };
  note_gap(kept);
  std::vector<double> weights;
  double total = 0.0;
  for (std::size_t i = 0; i < kept; ++i) {
    weights.push_back(std::exp(scores[order[i]] - scores[order[0]]));
    total += weights.back();
  }
  if (options.top_p < 1.0) {
    double sum = 0.0;
    for (std::size_t i = 0; i < weights.size(); ++i) {
      if (i > 0 && sum >= options.top_p * total) kept = std::min(kept, i);
      sum += weights[i];
      result.margin = std::min(result.margin, std::abs(sum / total - options.top_p));
    }
    note_gap(kept);
  }
  total = 0.0;
  for (std::size_t i = 0; i < kept; ++i) total += weights[i];
  result.probabilities.resize(scores.size(), 0.0);
  for (std::size_t i = 0; i < kept; ++i) result.probabilities[order[i]] = weights[i] / total;
  return result;
}

// Each case's tokens are drawn kSeeds * kSamples * kPositions times.
constexpr std::int64_t kSeeds = 50, kSamples = 40, kPositions = 100;
constexpr double kDraws = static_cast<double>(kSeeds * kSamples * kPositions);
constexpr double kFalseAlarm = 1e-10;  // per case
constexpr double kSmallestBin = 10.0;  // expected draws; rarer tokens share bins

struct Bin {
  double expected = 0.0;
  double drawn = 0.0;
};

// The tokens that can be drawn, the rarest ones together.
std::vector<Bin> bins_of(const std::vector<double>& probabilities, const std::vector<double>& drawn) {
  std::vector<Bin> bins;
  for (std::size_t id = 0; id < drawn.size(); ++id) {
    if (probabilities[id] > 0.0) bins.push_back({probabilities[id] * kDraws, drawn[id]});
  }
  std::ranges::sort(bins, {}, &Bin::expected);
  std::vector<Bin> merged;
  for (const Bin& bin : bins) {
    if (merged.empty() || merged.back().expected >= kSmallestBin) merged.emplace_back();
    merged.back().expected += bin.expected;
    merged.back().drawn += bin.drawn;
  }
  return merged;
}

// Half the likelihood-ratio statistic G, the form of the chi-square statistic whose tail is bounded for any counts and
// not only in the limit: draws * KL(observed || expected).
double divergence(const std::vector<Bin>& bins) {
  double sum = 0.0;
  for (const Bin& bin : bins) {
    if (bin.drawn > 0.0) sum += bin.drawn * std::log(bin.drawn / bin.expected);
  }
  return sum;
}

// With n draws from k bins, P(n KL >= x) <= e^-x (e x / (k - 1))^(k - 1) for x > k - 1 (R. Agrawal, "Finite-sample
// concentration of the multinomial in relative entropy", IEEE Transactions on Information Theory 66, 2020). The x at
// which that is kFalseAlarm.
double largest_divergence(std::size_t bins) {
  const auto freedom = static_cast<double>(bins - 1);
  if (freedom == 0.0) return 1e-6;  // one bin: nothing but roundings
  double low = freedom, high = 1e6;
  for (int i = 0; i < 100; ++i) {
    const double x = (low + high) / 2;
    const double log_bound = -x + freedom * (1.0 + std::log(x / freedom));
    (log_bound > std::log(kFalseAlarm) ? low : high) = x;
  }
  return high;
}

}  // namespace

TEST_CASE("the distribution is what Hugging Face's processors leave") {
  const Json cases = read_json(STAGECOACH_SOURCE_DIR "/tests/golden/data_sampling.json");
  REQUIRE(cases.array()->size() >= 40);
  Sampler sampler;
  for (const Json& item : *cases.array()) {
    const SamplingOptions options{number(*item.find("temperature")),
                                  static_cast<std::int32_t>(*item.find("top_k")->integer()),
                                  number(*item.find("top_p")), number(*item.find("repetition_penalty"))};
    std::vector<float> logits;
    for (const Json& logit : *item.find("logits")->array()) logits.push_back(static_cast<float>(number(logit)));
    const std::vector<std::int32_t> expected = ids(*item.find("ids"));
    INFO(describe(options, logits.size()));

    const auto distribution = sampler.distribution(logits, options, ids(*item.find("seen")));
    std::vector<Candidate> ours(distribution.begin(), distribution.end());
    std::ranges::sort(ours, {}, &Candidate::id);
    std::vector<std::int32_t> our_ids;
    for (const Candidate& c : ours) our_ids.push_back(c.id);
    REQUIRE(our_ids == expected);
    double worst = 0.0;
    for (std::size_t i = 0; i < ours.size(); ++i) {
      const double theirs = number((*item.find("probabilities")->array())[i]);
      worst = std::max(worst, std::abs(ours[i].probability - theirs) / theirs);
    }
    CHECK(worst < 1e-5);
  }
}

TEST_CASE("tokens are drawn as often as their probabilities say") {
  const std::uint64_t test_seed = std::random_device{}();
  INFO("seed ", test_seed);
  Random random(test_seed);
  struct Case {
    std::size_t vocabulary;
    float spread;  // standard deviation of the logits
    SamplingOptions options;
  };
  const Case cases[] = {
      {2, 1.0F, {1.0, 0, 1.0, 1.0}},    {40, 2.0F, {1.0, 0, 1.0, 1.0}},    {40, 2.0F, {0.7, 0, 1.0, 1.3}},
      {40, 2.0F, {1.5, 8, 1.0, 0.8}},   {40, 2.0F, {1.0, 0, 0.9, 1.0}},    {40, 1.0F, {0.8, 20, 0.8, 1.2}},
      {150, 0.1F, {1.0, 0, 0.95, 1.0}}, {150, 0.3F, {2.0, 100, 0.5, 2.0}}, {40, 4.0F, {0.4, 45, 0.99, 1.1}},
  };
  Sampler sampler;
  for (const auto& [vocabulary, spread, options] : cases) {
    INFO(describe(options, vocabulary));
    std::vector<float> logits(vocabulary);
    std::vector<std::int32_t> seen;
    Reference expected;
    do {  // until no float32 rounding can decide whether a token is in
      std::normal_distribution<float> normal(0.0F, spread);
      for (float& logit : logits) logit = normal(random);
      seen.clear();
      for (std::size_t id = 0; id < vocabulary; ++id) {
        if (random() % 3 == 0) seen.push_back(static_cast<std::int32_t>(id));
      }
      std::ranges::shuffle(seen, random);
      expected = reference(logits, options, seen);
    } while (expected.margin < 1e-5);

    std::vector<double> drawn(vocabulary, 0.0);
    const auto first_position = static_cast<std::uint32_t>(random() % 1000);
    for (std::int64_t i = 0; i < kSeeds; ++i) {
      const std::uint64_t seed = i % 2 == 0 ? random() : random() % 100;
      for (std::uint32_t sample = 0; sample < kSamples; ++sample) {
        for (std::uint32_t position = 0; position < kPositions; ++position) {
          const double u = uniform(seed, sample, first_position + position);
          drawn[static_cast<std::size_t>(sampler.pick(logits, options, seen, u))] += 1.0;
        }
      }
    }
    for (std::size_t id = 0; id < vocabulary; ++id) {
      CAPTURE(id);
      if (expected.probabilities[id] == 0.0) CHECK(drawn[id] == 0.0);
    }
    const std::vector<Bin> bins = bins_of(expected.probabilities, drawn);
    CHECK(divergence(bins) < largest_divergence(bins.size()));
  }
}
