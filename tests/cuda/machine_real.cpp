#include "tests/cuda/machine.hpp"

namespace stagecoach::test {

void prepare_machine() {}

bool wants_small_jobs() {
  return false;
}

}  // namespace stagecoach::test
