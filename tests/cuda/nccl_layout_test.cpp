// Deterministic CUDA stages as MPI ranks, rows going from device to device over NCCL. Usage: mpirun -n N
// nccl_layout_test [rounds] [seed]. Ranks whose number has no GPU of its own share one, as tests/gpu prepares.
#include "tests/cuda/machine.hpp"
#include "tests/cuda/nccl_links.hpp"
#include "tests/mpi/layout_rounds.hpp"

using namespace stagecoach;

int main(int argc, char** argv) {
  test::prepare_machine();
  return test::layout_main(argc, argv, {.rounds = 5, .small = test::wants_small_jobs()}, test::own_backend,
                           test::nccl_links);
}
