#include "tests/cuda/machine.hpp"

namespace stagecoach::test {

void prepare_machine() {}

}  // namespace stagecoach::test
