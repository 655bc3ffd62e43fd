#include "partition/balance.hpp"

#include <algorithm>
#include <limits>
#include <numeric>

namespace stagecoach {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

// best_[k][l]: slowest stage of the best way to run the first l blocks as k stages on the devices seen so far. From one
// device to the next only the ways that use the new one are added.
class Table {
 public:
  explicit Table(const BalanceProblem& problem)
      : p_(problem),
        best_(at(problem.stages, problem.blocks) + 1, kNever),
        used_(static_cast<std::size_t>(problem.devices), std::vector<Choice>(best_.size())) {
    best_[at(0, 0)] = 0.0;
    for (std::int32_t device = 0; device < p_.devices; ++device) add(device);
  }

  std::optional<Balance> answer() const {
    Balance result;
    result.slowest_s = best_[at(p_.stages, p_.blocks)];
    if (result.slowest_s == kNever) return std::nullopt;
    std::int32_t stages = p_.stages;
    std::int32_t blocks = p_.blocks;
    for (std::int32_t device = p_.devices - 1; stages > 0; --device) {
      const Choice choice = used_[static_cast<std::size_t>(device)][at(stages, blocks)];
      if (choice.first < 0) continue;
      result.stages.push_back({choice.first, blocks - 1});
      result.devices.push_back(device);
      blocks = choice.first;
      --stages;
    }
    std::ranges::reverse(result.stages);
    std::ranges::reverse(result.devices);
    return result;
  }

 private:
  // First block of the last stage, if it runs on this device in the best way so far.
  struct Choice {
    std::int32_t first = -1;
  };

  std::size_t at(std::int32_t stages, std::int32_t blocks) const {
    return static_cast<std::size_t>(stages) * (static_cast<std::size_t>(p_.blocks) + 1) +
           static_cast<std::size_t>(blocks);
  }
  double seconds(std::int32_t device, std::int32_t first, std::int32_t end) const {
    const BlockRange blocks{first, end - 1};
    return p_.fits(device, blocks) ? p_.seconds(device, blocks) : kNever;
  }

  void add(std::int32_t device) {
    // Downwards, so that best_[k - 1] is still of the devices before.
    for (std::int32_t k = std::min(p_.stages, device + 1); k >= 1; --k) {
      for (std::int32_t end = k; end <= p_.blocks; ++end) add(device, k, end);
    }
  }

  // The first block of the last stage moves up from k - 1 to end - 1: its time falls and that of the stages before
  // rises (more blocks need not be feasible, but never get faster), so the best is where they cross.
  void add(std::int32_t device, std::int32_t k, std::int32_t end) {
    std::int32_t low = k - 1;
    std::int32_t high = end - 1;
    while (low < high) {
      const std::int32_t middle = low + (high - low) / 2;
      if (best_[at(k - 1, middle)] >= seconds(device, middle, end)) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    for (const std::int32_t first : {low - 1, low}) {
      if (first < k - 1) continue;
      const double slowest = std::max(best_[at(k - 1, first)], seconds(device, first, end));
      if (slowest < best_[at(k, end)]) {
        best_[at(k, end)] = slowest;
        used_[static_cast<std::size_t>(device)][at(k, end)] = {first};
      }
    }
  }

  const BalanceProblem& p_;
  std::vector<double> best_;
  std::vector<std::vector<Choice>> used_;
};

}  // namespace

std::optional<Balance> balance(const BalanceProblem& problem) {
  if (problem.stages < 1 || problem.stages > problem.devices || problem.stages > problem.blocks) return std::nullopt;
  return Table(problem).answer();
}

std::vector<BlockRange> proportional_cut(std::int32_t blocks, const std::vector<double>& weights) {
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  const auto stages = static_cast<std::int32_t>(weights.size());
  std::vector<BlockRange> cut;
  double before = 0.0;
  std::int32_t first = 0;
  for (std::int32_t s = 0; s < stages; ++s) {
    before += weights[static_cast<std::size_t>(s)];
    const auto wanted = static_cast<std::int32_t>(before / total * blocks + 0.5);
    const std::int32_t end = s + 1 == stages ? blocks : std::clamp(wanted, first + 1, blocks - (stages - 1 - s));
    cut.push_back({first, end - 1});
    first = end;
  }
  return cut;
}

}  // namespace stagecoach
