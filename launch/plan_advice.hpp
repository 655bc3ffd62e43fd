// What to say when a plan does not fit: which stages lack how much, and what would fit instead.
#pragma once

#include <functional>
#include <string>

#include "partition/planner.hpp"

namespace stagecoach {

// The request with other dtypes.
struct OtherDTypes {
  std::string option;  // "--kv-dtype float16"
  PlanRequest request;
};

// One line.
std::string fit_advice(const PlanRequest& request, const PipelinePlan& plan, const std::vector<OtherDTypes>& others);

}  // namespace stagecoach
