// Plans of attention in parts that are in use, of the rows of one set_rows: every block of a model asks for the same
// few, one for each of some ranges of rows. Pure host; the caller owns the device memory and brings the words there.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cuda/attention_plan.hpp"
#include "kernels/row_set.hpp"

namespace stagecoach::cuda {

struct PartPlan {
  std::int32_t n_head = 0;
  std::int64_t first_row = 0;
  std::int64_t rows = 0;
  AttentionPlan plan;
  std::int64_t first_word = 0;  // where the plan's words begin on the device
};

class PartPlans {
 public:
  // The rows have changed, or what the words lay in.
  void forget() { used_ = 0; }

  // Null when it must be made.
  const PartPlan* find(std::int32_t n_head, std::int64_t first_row, std::int64_t rows) const;
  // Its words go behind those of the others if `room` words have space for that; otherwise it replaces all others, and
  // room or not, begins at word 0.
  const PartPlan& make(const RowSet& set, std::int32_t n_head, std::int64_t first_row, std::int64_t rows,
                       bool deterministic, int multiprocessors, std::int64_t room);

 private:
  std::vector<PartPlan> plans_;  // those from used_ on are old, kept for their memory
  std::size_t used_ = 0;
};

}  // namespace stagecoach::cuda
