// Mistakes that users make, and what the program must make of each: one message, the right status, soon.
#pragma once

#include <doctest/doctest.h>

#include <initializer_list>
#include <string>

#include "tests/program/run_program.hpp"

namespace stagecoach::test {

inline const std::string kTiny = "synthetic:gpt2,n_layer=3,n_embd=16,n_head=2,n_positions=40,vocab_size=50,seed=1";
inline const std::string kDemo = STAGECOACH_SOURCE_DIR "/configs/demo";

struct Mistake {
  std::string arguments;
  int status;
  std::string says;
};

// Alone and under mpirun, unless told otherwise.
inline void expect(const Mistake& mistake, std::initializer_list<int> ranks_to_try = {0, 3}) {
  for (const int ranks : ranks_to_try) {
    const Ended ended = run_program(ranks, mistake.arguments);
    INFO(ranks << " ranks: " << mistake.arguments << "\nout: " << ended.out << "\nerr: " << ended.err);
    CHECK(ended.status == mistake.status);
    CHECK(ended.messages() == 1);
    CHECK(ended.says(mistake.says));
    CHECK(ended.seconds < 10.0);
  }
}

}  // namespace stagecoach::test
