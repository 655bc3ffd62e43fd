// Mistakes that users make, and what the program must make of each: one message, the right status, soon.
#pragma once

#include <initializer_list>
#include <string>

#include "tests/program/run_program.hpp"

namespace stagecoach::test {

extern const std::string kTiny;  // a synthetic model of three blocks and 40 positions
extern const std::string kDemo;  // the bundled one

struct Mistake {
  std::string arguments;
  int status;
  std::string says;
};

// Checks it alone and under mpirun, unless told otherwise.
void expect(const Mistake& mistake, std::initializer_list<int> ranks_to_try = {0, 3});

}  // namespace stagecoach::test
