#include "partition/chunking.hpp"

#include <algorithm>
#include <limits>

namespace stagecoach {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

// All chunks from unit i to unit j, their times looked up once.
class Times {
 public:
  explicit Times(const ChunkProblem& p)
      : units_(static_cast<std::int32_t>((p.prompt_tokens + p.unit - 1) / p.unit)),
        most_(std::max(1, p.most / p.unit)),
        times_(static_cast<std::size_t>(units_) * static_cast<std::size_t>(std::min(most_, units_))) {
    for (std::int32_t i = 0; i < units_; ++i) {
      for (std::int32_t j = i + 1; j <= last_end(i); ++j) {
        const std::int64_t first = std::int64_t{i} * p.unit;
        times_[index(i, j)] =
            p.seconds(first, std::min<std::int64_t>(p.prompt_tokens, std::int64_t{j} * p.unit) - first);
      }
    }
  }

  std::int32_t units() const { return units_; }
  std::int32_t last_end(std::int32_t i) const { return std::min(units_, i + most_); }
  double at(std::int32_t i, std::int32_t j) const { return times_[index(i, j)]; }
  std::vector<double> distinct() const {
    std::vector<double> all;
    for (std::int32_t i = 0; i < units_; ++i) {
      for (std::int32_t j = i + 1; j <= last_end(i); ++j) all.push_back(at(i, j));
    }
    std::ranges::sort(all);
    all.erase(std::ranges::unique(all).begin(), all.end());
    return all;
  }

 private:
  std::size_t index(std::int32_t i, std::int32_t j) const {
    return static_cast<std::size_t>(i) * static_cast<std::size_t>(std::min(most_, units_)) +
           static_cast<std::size_t>(j - i - 1);
  }
  std::int32_t units_;
  std::int32_t most_;
  std::vector<double> times_;
};

// The least sum of times of chunks that take `longest` at most each; `next[i]` is where the chunk from unit i ends.
double least_sum(const Times& times, double longest, std::vector<double>& sums, std::vector<std::int32_t>& next) {
  const std::int32_t units = times.units();
  sums.assign(static_cast<std::size_t>(units) + 1, kNever);
  next.assign(static_cast<std::size_t>(units), -1);
  sums.back() = 0.0;
  for (std::int32_t i = units - 1; i >= 0; --i) {
    const auto at = static_cast<std::size_t>(i);
    for (std::int32_t j = i + 1; j <= times.last_end(i); ++j) {
      const double time = times.at(i, j);
      const double sum = time + sums[static_cast<std::size_t>(j)];
      if (time > longest || sum >= sums[at]) continue;
      sums[at] = sum;
      next[at] = j;
    }
  }
  return sums.front();
}

ChunkPlan plan_of(const ChunkProblem& p, const std::vector<std::int32_t>& next) {
  ChunkPlan chunks;
  for (std::int32_t i = 0; i < static_cast<std::int32_t>(next.size());) {
    const std::int32_t j = next[static_cast<std::size_t>(i)];
    const std::int64_t end = std::min<std::int64_t>(p.prompt_tokens, std::int64_t{j} * p.unit);
    chunks.push_back(static_cast<std::int32_t>(end - std::int64_t{i} * p.unit));
    i = j;
  }
  return chunks;
}

}  // namespace

std::int64_t chunk_end(const ChunkPlan& chunks, std::int64_t position) {
  std::int64_t end = 0;
  for (const std::int32_t length : chunks) {
    end += length;
    if (position < end) return end;
  }
  const std::int64_t last = chunks.back();
  return end + (position - end) / last * last + last;
}

std::int32_t longest_chunk(const ChunkPlan& chunks) {
  return *std::ranges::max_element(chunks);
}

PlannedChunks plan_chunks(const ChunkProblem& problem) {
  const Times times(problem);
  const double others = problem.stages - 1;
  std::vector<double> sums;
  std::vector<std::int32_t> next;
  // The sum falls as longer chunks are allowed, so between two limits no cut is better than the larger one's sum and
  // the smaller one's longest chunk. Halving intervals until that bound rules them out visits few limits.
  const std::vector<double> limits = times.distinct();
  PlannedChunks best{{}, kNever};
  const auto visit = [&](std::size_t i) {
    const double sum = least_sum(times, limits[i], sums, next);
    if (sum == kNever) return sum;
    double longest = 0.0;
    for (std::int32_t u = 0; u < times.units(); u = next[static_cast<std::size_t>(u)]) {
      longest = std::max(longest, times.at(u, next[static_cast<std::size_t>(u)]));
    }
    if (sum + others * longest < best.seconds) best = {plan_of(problem, next), sum + others * longest};
    return sum;
  };
  struct Interval {
    std::size_t low, high;  // both visited
    double high_sum;
  };
  visit(0);
  std::vector<Interval> open{{0, limits.size() - 1, visit(limits.size() - 1)}};
  while (!open.empty()) {
    const Interval interval = open.back();
    open.pop_back();
    if (interval.high - interval.low < 2) continue;
    if (interval.high_sum + others * limits[interval.low + 1] >= best.seconds) continue;
    const std::size_t middle = interval.low + (interval.high - interval.low) / 2;
    const double sum = visit(middle);
    open.push_back({middle, interval.high, interval.high_sum});
    if (sum != kNever) open.push_back({interval.low, middle, sum});
  }
  return best;
}

PlannedChunks best_uniform_chunks(const ChunkProblem& problem) {
  PlannedChunks best{{}, kNever};
  for (std::int64_t length = problem.unit; length <= std::max(problem.most, problem.unit); length += problem.unit) {
    ChunkPlan chunks;
    double sum = 0.0;
    double longest = 0.0;
    for (std::int64_t first = 0; first < problem.prompt_tokens; first += length) {
      const std::int64_t rows = std::min(length, problem.prompt_tokens - first);
      const double time = problem.seconds(first, rows);
      sum += time;
      longest = std::max(longest, time);
      chunks.push_back(static_cast<std::int32_t>(rows));
    }
    const double seconds = sum + (problem.stages - 1) * longest;
    if (seconds < best.seconds) best = {chunks, seconds};
    if (length >= problem.prompt_tokens) break;
  }
  return best;
}

std::int32_t chunk_unit(std::int64_t prompt_tokens) {
  constexpr std::int64_t kStep = 16;
  constexpr std::int64_t kMostUnits = 256;
  const std::int64_t step = kStep * kMostUnits;
  return static_cast<std::int32_t>(std::max<std::int64_t>(1, (prompt_tokens + step - 1) / step) * kStep);
}

}  // namespace stagecoach
