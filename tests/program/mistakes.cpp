#include "tests/program/mistakes.hpp"

#include <doctest/doctest.h>

namespace stagecoach::test {

const std::string kTiny = "synthetic:gpt2,n_layer=3,n_embd=16,n_head=2,n_positions=40,vocab_size=50,seed=1";
const std::string kDemo = STAGECOACH_SOURCE_DIR "/configs/demo";

void expect(const Mistake& mistake, std::initializer_list<int> ranks_to_try) {
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
