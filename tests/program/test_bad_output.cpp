// Output that cannot be written: one message, status 2 where no file can be and 1 where there is no room, and a good
// file of an earlier run stays as it is.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include "tests/program/mistakes.hpp"

using namespace stagecoach::test;

namespace {

const std::string kGood = "{\"an older run's\": \"results\"}\n";

std::string generate(const ScratchFolder& folder) {
  write_file(folder / "p.jsonl", "{\"tokens\": [1, 2]}\n{\"tokens\": [3]}\n");
  return "generate --model " + kTiny + " --prompts " + (folder / "p.jsonl") +
         " --num-samples 60 --temperature 1 --ignore-eos";
}

}  // namespace

TEST_CASE("output where no file can be") {
  const ScratchFolder folder;
  const std::string arguments = generate(folder);
  std::filesystem::create_directory(folder / "d.jsonl");
  std::filesystem::create_directory(folder / "d.h5");
  write_file(folder / "file", "");
  for (const std::string& output : {std::string("/proc/o.jsonl"), folder / "d.jsonl", folder / "file/o.jsonl"}) {
    expect({arguments + " --output " + output, 2, output + ": "});
  }
  expect({"convert --model " + kTiny + " --output /proc/m.h5", 2, "/proc/m.h5: "});
  expect({"convert --model " + kTiny + " --output " + (folder / "d.h5"), 2, "d.h5: is not a plain file"});
  expect({"score --model " + kTiny + " --prompts " + (folder / "p.jsonl") + " --output /proc/o.jsonl", 2, "/proc/o.j"});
  const auto no_folder = [](const std::string& command, const std::string& name) {
    const std::string path = "/does/not/exist/" + name;
    expect({command + " " + path, 2, path + ": cannot make the file: its folder does not exist"});
  };
  no_folder(arguments + " --output", "o.jsonl");
  no_folder(arguments + " --output", "o.h5");
  no_folder("convert --model " + kTiny + " --output", "m.h5");
  // Before anything is measured, which may take hours.
  no_folder("bench --model " + kTiny + " --prompt-tokens 3 --new-tokens 2 --json", "b.json");
  no_folder("profile --model " + kTiny + " --output", "m.yaml");
  no_folder("plan --model " + kTiny + " --write", "r.yaml");
  write_file(folder / "run.yaml", fmt::format("model: {}\nprompts: {}\noutput: {}\npipeline: {{stages: 2}}\n", kTiny,
                                              folder / "p.jsonl", folder / "o.jsonl"));
  no_folder("slurm --config " + (folder / "run.yaml") + " --write", "job.sh");
}

TEST_CASE("a full disk leaves the older file and no half-written one") {
  const ScratchFolder folder;
  const std::string arguments = generate(folder);
  const std::string disk = folder / "disk";
  const SmallDisk small(disk, 16);
  for (const char* name : {"o.jsonl", "o.h5"}) {
    const std::string output = disk + "/" + name;
    write_file(output, kGood);
    if (small.mounted()) {
      expect({arguments + " --output " + output, 1, "No space left on device"});
    } else {  // a limit of 4 KiB per file does the same, for one process
      const Ended ended = run_program(0, arguments + " --output " + output, 60, "ulimit -f 8; ");
      INFO(ended.err);
      CHECK(ended.status == 1);
      CHECK(ended.messages() == 1);
      CHECK(ended.says("File too large"));
    }
    CHECK(read_file(output) == kGood);
    std::filesystem::remove(output);
    std::filesystem::remove(output + ".journal");  // what was finished before the disk was full
    CHECK(std::filesystem::is_empty(disk));
  }
  const std::string model = disk + "/m.h5";
  write_file(model, kGood);
  const Mistake convert{"convert --model " + kTiny + " --output " + model, 1, "m.h5"};
  if (small.mounted()) {
    expect(convert);
  } else {
    CHECK(run_program(0, convert.arguments, 60, "ulimit -f 8; ").status == 1);
  }
  CHECK(read_file(model) == kGood);
  CHECK(!std::filesystem::exists(model + ".partial"));
}

TEST_CASE("standard output that is full, closed or goes away") {
  const ScratchFolder folder;
  const std::string many = generate(folder);
  const std::string score = "score --model " + kTiny + " --prompts " + (folder / "p.jsonl");
  for (const std::string& arguments : {many, "generate --model " + kDemo + " --prompt 'The coach'", score,
                                       "tokenize --model " + kDemo + " " + (folder / "p.jsonl"),
                                       "bench --model " + kTiny + " --prompt-tokens 3 --new-tokens 2",
                                       std::string("generate --help"), std::string("--version")}) {
    expect({arguments + " >/dev/full", 1, "standard output"}, Where::kAlone);
    expect({arguments + " >&-", 1, "standard output"}, Where::kAlone);
  }
  // A reader that takes one byte and leaves.
  for (const int ranks : {0, 3}) {
    const Ended ended = run_program(ranks, "generate --model " + kTiny + " --prompts " + (folder / "p.jsonl") +
                                               (ranks > 0 ? " --num-samples 200" : " --num-samples 3000") +
                                               " --temperature 1 --ignore-eos > >(head -c 1 >/dev/null)");
    INFO(ranks << " ranks: " << ended.err);
    CHECK(ended.seconds < on_this_machine(30.0));
    if (ranks > 0) continue;  // mpirun takes what its ranks print, whoever reads it
    CHECK(ended.status == 1);
    CHECK(ended.messages() == 1);
    CHECK(ended.says("standard output: cannot write: Broken pipe"));
  }
}
