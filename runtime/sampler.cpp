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

// Sorts only as many of the most probable candidates as together reach `share` of the sum of all, and drops the rest.
// A candidate stays while those before it do not reach the share; the first always stays.
void keep_share(std::vector<Candidate>& candidates, double share) {
  double total = 0.0;
  for (const Candidate& c : candidates) total += c.probability;
  double sum = 0.0;
  std::size_t kept = 0;
  for (std::size_t sorted = 0, step = 64; sorted < candidates.size(); step *= 4) {
    const std::size_t end = std::min(candidates.size(), sorted + step);
    const auto at = [&](std::size_t i) { return candidates.begin() + static_cast<std::ptrdiff_t>(i); };
    std::partial_sort(at(sorted), at(end), candidates.end(), more_probable);
    sorted = end;
    for (; kept < sorted; ++kept) {
      if (kept > 0 && sum >= share * total) {
        candidates.resize(kept);
        return;
      }
      sum += candidates[kept].probability;
    }
  }
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
  if (options.top_k > 0 && static_cast<std::size_t>(options.top_k) < candidates_.size()) {
    const auto end = candidates_.begin() + options.top_k;
    std::nth_element(candidates_.begin(), end - 1, candidates_.end(), more_probable);
    candidates_.erase(end, candidates_.end());
    std::sort(candidates_.begin(), candidates_.end(), more_probable);
  }
  const auto largest = static_cast<double>(scores[best]);
  for (Candidate& c : candidates_) c.probability = std::exp((c.probability - largest) / options.temperature);
  if (options.top_p < 1.0) keep_share(candidates_, options.top_p);
  double total = 0.0;
  for (const Candidate& c : candidates_) total += c.probability;
  for (Candidate& c : candidates_) c.probability /= total;
  return candidates_;
}

std::int32_t Sampler::pick(std::span<const float> logits, const SamplingOptions& options,
                           std::span<const std::int32_t> seen, double u) {
  if (options.temperature == 0.0) return pick_greedy(penalised(logits, options.repetition_penalty, seen));
  const std::span<const Candidate> candidates = distribution(logits, options, seen);
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
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0.0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
  return static_cast<float>(static_cast<double>(logits[static_cast<std::size_t>(token)]) - largest - std::log(sum));
}

}  // namespace stagecoach
