#include <random>

#include "tests/cuda/machine.hpp"
#include "tests/cuda_emulation/emulation.hpp"
#include "tests/cuda_emulation/nccl_emulation.hpp"

namespace stagecoach::test {

void prepare_machine() {
  cuda_emulation::reset({.devices = 4});
  cuda_emulation::nccl::behave({.most_polls = 5}, std::random_device{}());
}

bool wants_small_jobs() {
  return true;
}

}  // namespace stagecoach::test
