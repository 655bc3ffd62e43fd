// Mistakes that users make, and what the program must make of each: one message, the right status, soon.
#pragma once

#include <source_location>
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

// Where a mistake is made: alone and under mpirun with three ranks; one of many alike, those of one line of a test, of
// which the first and one in eleven by chance are made under mpirun too (all of them when slow tests are asked for); or
// alone only, where mpirun hides what matters.
enum class Where { kAloneAndMpirun, kMany, kAlone };

void expect(const Mistake& mistake, Where where = Where::kAloneAndMpirun,
            const std::source_location& line = std::source_location::current());

}  // namespace stagecoach::test
