// --map-weights: the same results from weights that stay in the file, in every grid, and what happens when somebody
// changes, cuts or replaces the file meanwhile.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "tests/program/mistakes.hpp"
#include "tests/program/run_program.hpp"
#include "tests/program/shared_runs.hpp"

using namespace stagecoach::test;

namespace {

const std::string kSynthetic = "synthetic:gpt2,n_layer=6,n_head=3,n_embd=96,n_positions=200,vocab_size=300,seed=8";

std::string converted(const ScratchFolder& folder, const std::string& name, const std::string& options = "") {
  const Ended ended =
      run_program(0, "convert --quiet --model " + kSynthetic + " --output " + (folder / name) + options);
  REQUIRE(ended.status == 0);
  return folder / name;
}

void write_prompts(const std::string& path) {
  std::string lines;
  for (int i = 0; i < 7; ++i) lines += fmt::format("{{\"tokens\": [{}, {}, 7, {}]}}\n", i, 3 * i + 1, 99 - i);
  write_file(path, lines);
}

bool all_are_loaded(const std::string& said) {
  return said.find("rank 0 (stage 0,") != std::string::npos && said.find("mapped") != std::string::npos;
}

// Runs two ranks, with something happening in the middle. `folder` has the files, whose paths tell the ranks apart.
Signalled run_beside(const ScratchFolder& folder, const std::string& arguments, const std::function<void()>& happens) {
  return run_and_act(2, arguments, folder.path().string(), all_are_loaded, std::chrono::seconds(1),
                     [&](std::span<const pid_t>) { happens(); });
}

}  // namespace

TEST_CASE("weights in the file give what loaded ones give, in every dtype and grid") {
  const ScratchFolder folder;
  write_prompts(folder / "in.jsonl");
  for (const std::string dtype : {"float16", "int8", "float32", "bfloat16"}) {
    const std::string model = converted(folder, dtype + ".h5", " --dtype " + dtype);
    const std::string command = fmt::format(
        "generate --fresh --logprobs -v --threads 2 --max-new-tokens 9 --prompts {} --model {} --output {} ",
        folder / "in.jsonl", model, folder / "out.jsonl");
    const std::vector<GridOption> all = {{3, "--map-weights"},
                                         {0, "--map-weights"},
                                         {0, "--map-weights --stages 3"},
                                         {0, "--map-weights --check"},
                                         {4, "--map-weights --replicas 2 --context-shards 2"}};
    const bool usual = dtype == "float16" || dtype == "int8";
    check_grids(command, folder / "out.jsonl", std::span(all).first(usual ? all.size() : 1), 60,
                [&](const Ended& ended) { CHECK(ended.says("(" + dtype + ", mapped)")); });
  }
}

TEST_CASE("what cannot be mapped is refused, with what would work") {
  const ScratchFolder folder;
  const std::string panels = converted(folder, "panels.h5", " --dtype float16");
  const std::string rows = converted(folder, "rows.h5", " --layout rows");
  const std::string bench = "bench --prompt-tokens 4 --new-tokens 2 --repeat 1 --map-weights --model ";
  expect({bench + kSynthetic, 2, "--map-weights: " + kSynthetic + " is no model file with packed matrices; make one"});
  expect({bench + rows, 2, "rows.h5 is no model file with packed matrices; make one with stagecoach convert --model"});
  expect({bench + panels + " --dtype int8", 2,
          "panels.h5 has float16 weights, which are used as they are; leave out --dtype int8, or convert"});
  const Ended on_gpu = run_emulated(0, bench + panels);
  INFO(on_gpu.err);
  CHECK(on_gpu.status == 2);
  CHECK(on_gpu.messages() == 1);
  CHECK(on_gpu.says("--map-weights: is for CPUs; leave it out, or give --device cpu"));
}

TEST_CASE("a mapped file that is changed or cut ends the job with one message and no output") {
  const ScratchFolder folder;
  const std::string whole = read_file(converted(folder, "whole.h5"));
  const std::string model = folder / "m.h5";
  std::string lines;
  for (int i = 0; i < 4000; ++i) lines += fmt::format("{{\"tokens\": [{}]}}\n", i % 300);
  write_file(folder / "in.jsonl", lines);
  const std::function<void()> changes[] = {[&] { std::filesystem::resize_file(model, 8192); },
                                           [&] { std::filesystem::resize_file(model, whole.size() + 1); },
                                           [&] {
                                             const int file = ::open(model.c_str(), O_WRONLY);
                                             CHECK(::pwrite(file, "x", 1, static_cast<off_t>(whole.size() / 2)) == 1);
                                             ::close(file);
                                           }};
  for (const std::function<void()>& change : changes) {
    write_file(model, whole);
    const Signalled run = run_beside(folder,
                                     fmt::format("generate --map-weights -v --threads 1 --ignore-eos --max-new-tokens "
                                                 "190 --model {} --prompts {} --output {}",
                                                 model, folder / "in.jsonl", folder / "out.jsonl"),
                                     change);
    INFO(run.ended.err);
    CHECK(run.ended.status == 1);
    // Both ranks may find it.
    const int told = times_in(run.ended.err, model + ": was c");
    CHECK((told == 1 || told == 2));
    CHECK(run.ended.says("while weights were used in it (--map-weights); leave it alone while jobs run"));
    CHECK(run.seconds_after < on_this_machine(10.0));
    CHECK_FALSE(std::filesystem::exists(folder / "out.jsonl"));
  }
}

TEST_CASE("a mapped file that is replaced stays as it was for the job") {
  const ScratchFolder folder;
  const std::string model = converted(folder, "m.h5");
  const std::string other = converted(folder, "other.h5", " --dtype float16");
  write_prompts(folder / "in.jsonl");
  const std::string command = fmt::format(
      "generate -v --threads 1 --ignore-eos --max-new-tokens 190 --num-samples 120 --temperature 1 --model {} "
      "--prompts "
      "{} --output ",
      model, folder / "in.jsonl");
  REQUIRE(run_program(2, command + (folder / "expected.jsonl")).status == 0);
  const Signalled run = run_beside(folder, command + (folder / "out.jsonl") + " --map-weights",
                                   [&] { std::filesystem::rename(other, model); });
  INFO(run.ended.err);
  CHECK(run.ended.status == 0);
  CHECK(run.seconds_after > 0.1);
  const bool same = read_file(folder / "out.jsonl") == read_file(folder / "expected.jsonl");
  CHECK(same);
}
