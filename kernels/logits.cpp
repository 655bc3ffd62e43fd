#include "kernels/logits.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace stagecoach {
namespace {

LogitsTotals totals_of(std::span<const float> row, std::int32_t wanted) {
  LogitsTotals totals;
  totals.largest = -std::numeric_limits<float>::infinity();
  totals.wanted = row[static_cast<std::size_t>(wanted)];
  for (const float logit : row) {
    if (std::isnan(logit)) totals.has_nan = 1;
    totals.largest = std::max(totals.largest, logit);
  }
  double sum = 0.0;
  for (const float logit : row) sum += std::exp(double{logit} - double{totals.largest});
  totals.sum = static_cast<float>(sum);
  return totals;
}

std::vector<TopLogit> top_of(std::span<const float> row, const LogitsQuery& query) {
  std::vector<TopLogit> all;
  for (const float logit : row) all.push_back({static_cast<std::int32_t>(all.size()), logit, logit});
  for (const std::int32_t token : query.penalised) {
    TopLogit& t = all[static_cast<std::size_t>(token)];
    t.penalised = static_cast<float>(t.logit < 0.0F ? t.logit * query.penalty : t.logit / query.penalty);
  }
  std::partial_sort(all.begin(), all.begin() + query.top, all.end(), [](const TopLogit& a, const TopLogit& b) {
    return a.penalised != b.penalised ? a.penalised > b.penalised : a.token < b.token;
  });
  all.resize(static_cast<std::size_t>(query.top));
  return all;
}

}  // namespace

bool LogitsSummary::sound() const {
  return totals->has_nan == 0 && std::isfinite(totals->largest) && (top.empty() || std::isfinite(top[0].penalised));
}

float LogitsSummary::log_probability(float logit) const {
  return static_cast<float>(double{logit} - double{totals->largest} - std::log(double{totals->sum}));
}

std::int64_t summary_bytes(std::span<const LogitsQuery> queries) {
  std::int64_t bytes = 0;
  for (const LogitsQuery& query : queries) bytes += summary_bytes(query);
  return bytes;
}

LogitsSummary read_summary(const std::byte*& at, const LogitsQuery& query) {
  const auto* totals = reinterpret_cast<const LogitsTotals*>(at);
  const auto* top = reinterpret_cast<const TopLogit*>(at + sizeof(LogitsTotals));
  at += summary_bytes(query);
  return {totals, {top, static_cast<std::size_t>(query.top)}};
}

void summarize_on_host(Tensor logits, std::span<const LogitsQuery> queries, void* out) {
  auto* next = static_cast<std::byte*>(out);
  for (std::int64_t r = 0; r < logits.rows; ++r) {
    const LogitsQuery& query = queries[static_cast<std::size_t>(r)];
    const std::span<const float> row(logits.f32(r), static_cast<std::size_t>(logits.cols));
    const LogitsTotals totals = totals_of(row, query.wanted);
    std::memcpy(next, &totals, sizeof totals);
    if (query.top > 0 && totals.has_nan == 0) {
      const std::vector<TopLogit> top = top_of(row, query);
      std::memcpy(next + sizeof totals, top.data(), top.size() * sizeof(TopLogit));
    }
    next += summary_bytes(query);
  }
}

}  // namespace stagecoach
