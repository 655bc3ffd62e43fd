#include "runtime/token_picker.hpp"

#include <algorithm>
#include <optional>

namespace stagecoach {

TokenPicker::TokenPicker(Backend& backend, std::int64_t max_rows, std::int64_t vocab_size)
    : backend_(backend), vocab_size_(vocab_size) {
  if (backend.in_host_memory() || max_rows == 0) return;
  summaries_ = backend.allocate(max_rows * kMostSummaryBytes);
  host_summaries_ = backend.allocate_host(max_rows * kMostSummaryBytes);
  host_logits_ = backend.allocate_host(max_rows * vocab_size * 4);
}

void TokenPicker::pick(SlotSampler& sampler, std::span<const Row> rows, Tensor logits, const Progress& progress,
                       std::vector<PickedToken>& picked) {
  if (!backend_.in_host_memory()) return pick_on_device(sampler, rows, logits, progress, picked);
  while (!backend_.idle()) progress();
  progress();
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const float* row = logits.f32(static_cast<std::int64_t>(r));
    picked.push_back(sampler.pick(rows[r], std::span(row, static_cast<std::size_t>(vocab_size_))));
  }
}

void TokenPicker::pick_on_device(SlotSampler& sampler, std::span<const Row> rows, Tensor logits,
                                 const Progress& progress, std::vector<PickedToken>& picked) {
  queries_.clear();
  whole_.clear();
  for (const Row& row : rows) {
    const std::optional<LogitsQuery> query = sampler.query(row);
    queries_.push_back(query.value_or(LogitsQuery{}));
    whole_.push_back(!query);
  }
  if (std::ranges::find(whole_, false) != whole_.end()) {
    backend_.summarize_logits(logits, queries_, summaries_.data());
    start_download(host_summaries_.data(), summaries_.data(), summary_bytes(queries_));
  }
  start_rows(logits);
  wait(progress);
  progress();
  const auto* next = static_cast<const std::byte*>(host_summaries_.data());
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const LogitsSummary summary = read_summary(next, queries_[r]);
    if (!whole_[r] && summary.sound()) {
      picked.push_back(sampler.pick(rows[r], summary));
      continue;
    }
    if (!whole_[r]) {  // all logits tell what is wrong with them
      const auto i = static_cast<std::int64_t>(r);
      start_download(static_cast<float*>(host_logits_.data()) + i * vocab_size_, logits.f32(i), vocab_size_ * 4);
      wait(progress);
    }
    picked.push_back(sampler.pick(rows[r], host_row(r)));
  }
}

// Starts to fetch the logits of all rows that need them, neighbours together.
void TokenPicker::start_rows(Tensor logits) {
  for (std::size_t r = 0; r < whole_.size();) {
    std::size_t end = r;
    while (end < whole_.size() && whole_[end]) ++end;
    if (end > r) {
      const auto first = static_cast<std::int64_t>(r);
      start_download(static_cast<float*>(host_logits_.data()) + first * vocab_size_, logits.f32(first),
                     static_cast<std::int64_t>(end - r) * vocab_size_ * 4);
    }
    r = end + 1;
  }
}

void TokenPicker::start_download(void* host, const void* device, std::int64_t bytes) {
  copies_.push_back(backend_.start_download(host, device, bytes));
}

void TokenPicker::wait(const Progress& progress) {
  while (!copies_.empty()) {
    while (!backend_.finished(copies_.back())) progress();
    copies_.pop_back();
  }
}

std::span<const float> TokenPicker::host_row(std::size_t r) const {
  const auto vocab = static_cast<std::size_t>(vocab_size_);
  return {static_cast<const float*>(host_logits_.data()) + r * vocab, vocab};
}

}  // namespace stagecoach
