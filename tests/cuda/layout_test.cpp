// Deterministic CUDA stages as MPI ranks, rows passing through the hosts' memory. Usage: mpirun -n N cuda_layout_test
// [rounds] [seed].
#include "tests/cuda/cuda_backends.hpp"
#include "tests/mpi/layout_rounds.hpp"

int main(int argc, char** argv) {
  return stagecoach::test::layout_main(argc, argv, 5, stagecoach::test::deterministic_cuda_backend);
}
