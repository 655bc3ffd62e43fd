#include "tests/program/mistakes.hpp"

#include <doctest/doctest.h>

#include <random>
#include <set>
#include <utility>

#include "tests/rounds.hpp"

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
  CHECK(ended.seconds < on_this_machine(10.0));
}

// Whether this one of those alike, all of `line`, stands for them under mpirun.
bool stands_for_others(const std::source_location& line) {
  static std::set<std::pair<std::string, unsigned>> lines_seen;
  static std::mt19937 random(std::random_device{}());
  return lines_seen.emplace(line.file_name(), line.line()).second || random() % 11 == 0;
}

}  // namespace

void expect(const Mistake& mistake, Where where, const std::source_location& line) {
  expect_with(0, mistake);
  const bool all = where == Where::kAloneAndMpirun || slow_tests();
  if (where != Where::kAlone && (all || stands_for_others(line))) expect_with(3, mistake);
}

}  // namespace stagecoach::test
