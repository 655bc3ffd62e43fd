#include "tests/program/mistakes.hpp"

#include <doctest/doctest.h>

#include <cstdlib>

namespace stagecoach::test {

const std::string kTiny = "synthetic:gpt2,n_layer=3,n_embd=16,n_head=2,n_positions=40,vocab_size=50,seed=1";
const std::string kDemo = STAGECOACH_SOURCE_DIR "/configs/demo";

namespace {

void expect_with(int ranks, const Mistake& mistake) {
  const Ended ended = run_program(ranks, mistake.arguments);
  INFO(ranks << " ranks: " << mistake.arguments << "\nout: " << ended.out << "\nerr: " << ended.err);
  CHECK(ended.status == mistake.status);
  CHECK(ended.messages() == 1);
  CHECK(ended.says(mistake.says));
  CHECK(ended.seconds < 10.0);
}

bool one_of_eleven() {
  static int calls = 0;
  return calls++ % 11 == 0;
}

}  // namespace

bool slow_tests() {
  return std::getenv("STAGECOACH_SLOW_TESTS") != nullptr;
}

void expect(const Mistake& mistake, Where where) {
  expect_with(0, mistake);
  const bool all = where == Where::kAloneAndMpirun || slow_tests();
  if (where != Where::kAlone && (all || one_of_eleven())) expect_with(3, mistake);
}

}  // namespace stagecoach::test
