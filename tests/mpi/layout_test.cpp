// The CPU backend's layouts over MPI ranks. Usage: mpirun -n N mpi_layout_test [rounds] [seed].
#include "tests/mpi/layout_rounds.hpp"

int main(int argc, char** argv) {
  return stagecoach::test::layout_main(argc, argv, {.rounds = 15}, nullptr);
}
