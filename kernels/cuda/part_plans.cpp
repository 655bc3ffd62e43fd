#include "kernels/cuda/part_plans.hpp"

#include <algorithm>
#include <utility>

namespace stagecoach::cuda {

const PartPlan* PartPlans::find(std::int32_t n_head, std::int64_t first_row, std::int64_t rows) const {
  for (std::size_t i = 0; i < used_; ++i) {
    const PartPlan& made = plans_[i];
    if (made.n_head == n_head && made.first_row == first_row && made.rows == rows) return &made;
  }
  return nullptr;
}

const PartPlan& PartPlans::make(const RowSet& set, std::int32_t n_head, std::int64_t first_row, std::int64_t rows,
                                bool deterministic, int multiprocessors, std::int64_t room) {
  const auto end = [](const PartPlan& made) {
    return made.first_word + static_cast<std::int64_t>(made.plan.words().size());
  };
  if (used_ == plans_.size()) plans_.emplace_back();
  PartPlan& next = plans_[used_];
  next.n_head = n_head;
  next.first_row = first_row;
  next.rows = rows;
  next.plan.assign_parts(set, first_row, rows, deterministic, multiprocessors, n_head);
  next.first_word = used_ == 0 ? 0 : end(plans_[used_ - 1]);
  if (used_ > 0 && end(next) > room) {
    next.first_word = 0;
    std::swap(plans_.front(), next);
    used_ = 0;
  }
  return plans_[used_++];
}

}  // namespace stagecoach::cuda
