#include "kernels/cuda/device_parts.hpp"

#include <algorithm>
#include <cstring>

namespace stagecoach::cuda {

void DeviceParts::reserve(const OwnMemory& own) {
  plans_.forget();
  merged_.clear();
  plan_words_ = Buffer();
  merge_words_ = Buffer();
  if (own.part_plan_words > 0) plan_words_ = pool_.allocate(own.part_plan_words);
  if (own.merge_words > 0) merge_words_ = pool_.allocate(own.merge_words);
}

DeviceParts::Planned DeviceParts::plan(const RowSet& rows, std::int32_t n_head, std::int64_t first, std::int64_t count,
                                       bool deterministic, int multiprocessors) {
  const auto word = [this](const PartPlan& made) {
    return static_cast<std::int32_t*>(plan_words_.data()) + made.first_word;
  };
  if (const PartPlan* const made = plans_.find(n_head, first, count)) return {made->plan, word(*made)};
  const std::int64_t room = static_cast<std::int64_t>(plan_words_.bytes() / sizeof(std::int32_t));
  const PartPlan& made = plans_.make(rows, n_head, first, count, deterministic, multiprocessors, room);
  try {
    const auto bytes = static_cast<std::int64_t>(made.plan.words().size_bytes());
    pool_.at_least(plan_words_, std::max(kLeastStepBytes, bytes));
    send(made.plan.words(), word(made));
  } catch (...) {
    plans_.forget();  // it is not there
    throw;
  }
  return {made.plan, word(made)};
}

const std::int32_t* DeviceParts::merging(std::span<const std::int32_t> first, std::span<const std::int32_t> numbers) {
  wanted_.assign(first.begin(), first.end());
  wanted_.insert(wanted_.end(), numbers.begin(), numbers.end());
  if (wanted_ != merged_) {
    merged_.clear();
    pool_.at_least(merge_words_, static_cast<std::int64_t>(std::span(wanted_).size_bytes()));
    send(wanted_, static_cast<std::int32_t*>(merge_words_.data()));
    merged_.swap(wanted_);
  }
  return static_cast<const std::int32_t*>(merge_words_.data());
}

void DeviceParts::send(std::span<const std::int32_t> words, std::int32_t* device) {
  std::memcpy(uploads_.claim(words.size_bytes()), words.data(), words.size_bytes());
  uploads_.send(device, words.size_bytes(), stream_);
}

}  // namespace stagecoach::cuda
