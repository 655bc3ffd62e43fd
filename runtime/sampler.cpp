#include "runtime/sampler.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace stagecoach {
namespace {

bool more_probable(const Candidate& a, const Candidate& b) {
  return a.probability != b.probability ? a.probability > b.probability : a.id < b.id;
}

// Drops all but `last` and what is more probable; keeps the order.
void keep_up_to(std::vector<Candidate>& candidates, const Candidate& last) {
  std::erase_if(candidates, [&last](const Candidate& c) { return more_probable(last, c); });
}

// The last of the fewest most probable candidates that together reach `share` of the sum of all: by halving, so in
// linear time. A candidate counts while those before it do not reach the share; the first always does. Reorders.
Candidate last_of_share(std::span<Candidate> candidates, double share) {
  double total = 0.0;
  for (const Candidate& c : candidates) total += c.probability;
  double before = 0.0;  // sum of what stands before the rest, which all are more probable
  std::span<Candidate> rest = candidates;
  while (rest.size() > 1) {
    const std::size_t half = rest.size() / 2;
    std::nth_element(rest.begin(), rest.begin() + static_cast<std::ptrdiff_t>(half), rest.end(), more_probable);
    double sum = before;
    for (const Candidate& c : rest.first(half)) sum += c.probability;
    if (sum >= share * total) {
      rest = rest.first(half);
    } else {
      before = sum;
      rest = rest.subspan(half);
    }
  }
  return rest.front();
}

std::int32_t draw(std::span<const Candidate> candidates, double u) {
  const Candidate* chosen = nullptr;
  double sum = 0.0;
  for (const Candidate& c : candidates) {
    if (c.probability <= 0.0) continue;  // out of reach even when roundings leave the sum below u
    chosen = &c;
    sum += c.probability;
    if (u < sum) break;
  }
  return chosen->id;
}

}  // namespace

std::span<const float> Sampler::penalised(std::span<const float> logits, double penalty,
                                          std::span<const std::int32_t> seen) {
  if (penalty == 1.0) return logits;
  logits_.assign(logits.begin(), logits.end());
  for (const std::int32_t id : seen) {
    float& logit = logits_[static_cast<std::size_t>(id)];
    logit = static_cast<float>(logit < 0.0F ? logit * penalty : logit / penalty);
  }
  return logits_;
}

std::span<const Candidate> Sampler::distribution(std::span<const float> logits, const SamplingOptions& options,
                                                 std::span<const std::int32_t> seen) {
  const std::span<const float> scores = penalised(logits, options.repetition_penalty, seen);
  const auto best = static_cast<std::size_t>(pick_greedy(scores));
  candidates_.clear();
  candidates_.reserve(scores.size());
  for (std::size_t i = 0; i < scores.size(); ++i) {
    candidates_.push_back({static_cast<std::int32_t>(i), static_cast<double>(scores[i])});
  }
  return weigh(options, static_cast<double>(scores[best]));
}

std::span<const Candidate> Sampler::weigh(const SamplingOptions& options, double largest) {
  if (options.top_k > 0 && static_cast<std::size_t>(options.top_k) < candidates_.size()) {
    scratch_ = candidates_;
    const auto last = scratch_.begin() + options.top_k - 1;
    std::nth_element(scratch_.begin(), last, scratch_.end(), more_probable);
    keep_up_to(candidates_, *last);
  }
  for (Candidate& c : candidates_) c.probability = std::exp((c.probability - largest) / options.temperature);
  if (options.top_p < 1.0) {
    scratch_ = candidates_;
    keep_up_to(candidates_, last_of_share(scratch_, options.top_p));
  }
  double total = 0.0;
  for (const Candidate& c : candidates_) total += c.probability;
  for (Candidate& c : candidates_) c.probability /= total;
  return candidates_;
}

std::int32_t Sampler::pick(std::span<const float> logits, const SamplingOptions& options,
                           std::span<const std::int32_t> seen, double u) {
  if (options.temperature == 0.0) return pick_greedy(penalised(logits, options.repetition_penalty, seen));
  return draw(distribution(logits, options, seen), u);
}

std::int32_t Sampler::pick(std::span<const TopLogit> top, const SamplingOptions& options, double u) {
  if (options.temperature == 0.0) return top.front().token;
  candidates_.clear();
  for (const TopLogit& t : top) candidates_.push_back({t.token, static_cast<double>(t.penalised)});
  std::ranges::sort(candidates_, {}, &Candidate::id);
  return draw(weigh(options, static_cast<double>(top.front().penalised)), u);
}

std::int32_t pick_greedy(std::span<const float> logits) {
  std::size_t best = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i])) {
      throw std::runtime_error(
          fmt::format("the logit of token {} is not a number: the weights overflow or are damaged", i));
    }
    if (logits[i] > logits[best]) best = i;
  }
  if (!std::isfinite(logits[best])) {
    throw std::runtime_error(
        fmt::format("the largest logit, of token {}, is {}: the weights overflow or are damaged", best, logits[best]));
  }
  return static_cast<std::int32_t>(best);
}

float log_probability(std::span<const float> logits, std::int32_t token) {
  const double largest = logits[static_cast<std::size_t>(pick_greedy(logits))];
  double sum = 0.0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
  return static_cast<float>(static_cast<double>(logits[static_cast<std::size_t>(token)]) - largest - std::log(sum));
}

}  // namespace stagecoach
