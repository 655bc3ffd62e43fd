// Deterministic CUDA stages as MPI ranks, rows passing through the hosts' memory. Usage: mpirun -n N cuda_layout_test
// [rounds] [seed].
#include "tests/cuda/cuda_backends.hpp"
#include "tests/cuda/machine.hpp"
#include "tests/mpi/layout_rounds.hpp"

using namespace stagecoach;

int main(int argc, char** argv) {
  test::prepare_machine();
  return test::layout_main(argc, argv, {.rounds = 5, .small = test::wants_small_jobs()},
                           test::deterministic_cuda_backend);
}
