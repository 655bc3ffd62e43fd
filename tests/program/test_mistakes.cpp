// What users get wrong: one message, the right status, no hang, alone and under mpirun.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <vector>

#include "launch/option_table.hpp"
#include "tests/program/mistakes.hpp"
#include "tests/rounds.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

TEST_CASE("wrong usage") {
  const std::array mistakes{
      Mistake{"", 2, "--help"},
      Mistake{"generat --model x", 2, "generate"},
      Mistake{"generate --model " + kTiny, 2, "--prompt"},
      Mistake{"generate --prompt x", 2, "--model"},
      Mistake{"generate --model " + kTiny + " --prompt x --max-new-token 3", 2, "--max-new-tokens"},
      Mistake{"generate --model " + kTiny + " --prompt x --max-new-tokens -3", 2, "--max-new-tokens"},
      Mistake{"generate --model " + kTiny + " --prompt x --threads nan", 2, "--threads"},
      Mistake{"generate --model " + kTiny + " --prompt x --temperature hot", 2, "temperature"},
      Mistake{"generate --model " + kTiny + " --prompt x --dtype float63", 2, "dtype"},
      Mistake{"generate --model " + kTiny + " --prompt x --config /does/not/exist.yaml", 2, "/does/not/exist.yaml"},
      Mistake{"bench --model " + kTiny + " --prompt-tokens 100", 2, "40"},
  };
  for (const Mistake& mistake : mistakes) expect(mistake);
}

// Every option whose value is a number, by what the table calls the value: a new option is tried without a word here.
bool is_number(const OptionSpec& spec) {
  constexpr std::string_view kWords[] = {"",     "M",        "FILE",     "FILE|-",        "D", "TEXT", "STR",
                                         "NAME", "auto|cpu", "auto|mpi", "error|truncate"};
  for (const std::string_view word : kWords) {
    if (spec.value == word) return false;
  }
  return true;
}

TEST_CASE("numbers that are none, infinite, negative, absurd or empty are refused with the option's name") {
  const std::vector<std::string> values = {"nan", "inf", "-inf", "-1", "99999999999999999999", "1e400", "1x", " 1", ""};
  const std::pair<Command, std::string> commands[] = {{Command::kGenerate, "generate --prompt x"},
                                                      {Command::kScore, "score --text x"},
                                                      {Command::kBench, "bench"},
                                                      {Command::kConvert, "convert --output x.h5"}};
  std::size_t tried = 0;
  for (const OptionSpec& spec : option_table()) {
    if (!is_number(spec)) continue;
    for (const auto& [command, start] : commands) {
      if ((spec.commands & bit_of(command)) == 0) continue;
      for (std::size_t v = 0; v < values.size(); ++v) {
        if (!slow_tests() && (v + tried) % 3 != 0) continue;  // each value with every third option
        expect({fmt::format("{} --model {} '--{}={}'", start, kTiny, spec.name, values[v]), 2,
                fmt::format("stagecoach: --{}: ", spec.name)},
               Where::kMany);
      }
      ++tried;
    }
  }
  CHECK(tried > 30);
}

TEST_CASE("numbers of the run file are held to the same bounds, with their place") {
  const ScratchFolder folder;
  const std::string arguments = "generate --model " + kTiny + " --prompt x --config " + (folder / "run.yaml");
  for (const char* value : {".nan", ".inf", "-.inf", "-1", "99999999999999999999", "1e400", "''", "[1]", "{}", "~"}) {
    write_file(folder / "run.yaml", fmt::format("generation:\n  temperature: {}\n", value));
    expect({arguments, 2, "run.yaml:2:"}, Where::kMany);
    write_file(folder / "run.yaml", fmt::format("pipeline:\n  in_flight: {}\n", value));
    expect({arguments, 2, "run.yaml:2:"}, Where::kMany);
  }
}

TEST_CASE("prompts that cannot be used are named by line, before anything runs") {
  const ScratchFolder folder;
  const std::string arguments =
      "generate --model " + kTiny + " --prompts " + (folder / "p.jsonl") + " --output " + (folder / "o.jsonl");
  const std::string good = "{\"tokens\": [1, 2]}\n";
  write_file(folder / "p.jsonl", good + "{\"tokens\": []}\n");
  expect({arguments, 2, "p.jsonl:2"});
  write_file(folder / "p.jsonl", good + good + "{\"tokens\": [1, 50]}\n");
  expect({arguments, 2, "p.jsonl:3"});
  write_file(folder / "p.jsonl", good + "{\"tokens\": [1\n");
  expect({arguments, 2, "p.jsonl:2"});
  write_file(folder / "p.jsonl", good + "{\"tokens\": [1], \"max_new_tokns\": 3}\n");
  expect({arguments, 2, "max_new_tokens"});
  std::string many = "1";
  for (int i = 0; i < 40; ++i) many += ", 1";
  write_file(folder / "p.jsonl", good + "{\"tokens\": [" + many + "]}\n");
  expect({arguments, 2, "--long-prompt truncate"});
  CHECK(!std::filesystem::exists(folder / "o.jsonl"));
  CHECK(run_program(0, arguments + " --long-prompt truncate").status == 0);
  expect({"generate --model " + kTiny + " --prompts " + (folder / "missing.jsonl"), 2, "missing.jsonl"});
}

TEST_CASE("prompts of every wrong form are named by line") {
  const ScratchFolder folder;
  const std::string lines = folder / "p.jsonl";
  const std::string arguments =
      "generate --model " + kTiny + " --prompts " + lines + " --output " + (folder / "o.jsonl");
  const std::string good = "{\"tokens\": [1, 2]}\n";
  for (const char* line : {"{}",
                           "[]",
                           "null",
                           "{\"tokens\": 5}",
                           "{\"tokens\": [1.5]}",
                           "{\"tokens\": [-1]}",
                           "{\"tokens\": [4294967297]}",
                           "{\"tokens\": [99999999999999999999]}",
                           "{\"tokens\": [\"a\"]}",
                           "{\"tokens\": [1], \"tokens\": [2]}",
                           "{\"tokens\": [1], \"temperature\": -1}",
                           "{\"tokens\": [1], \"temperature\": NaN}",
                           "{\"tokens\": [1], \"temperature\": 1e999}",
                           "{\"tokens\": [1], \"max_new_tokens\": 0}",
                           "{\"tokens\": [1], \"num_samples\": 1e9}",
                           "{\"tokens\": [1], \"seed\": -1}",
                           "{\"tokens\": [1], \"stop\": [\"\"]}",
                           "{\"tokens\": [1], \"id\": []}",
                           "{\"tokens\": [1]} x",
                           "{\"tokens\": [1",
                           "",
                           "{\"prompt\": \"text\"}"}) {
    write_file(lines, good + line + "\n" + good);
    expect({arguments, 2, "p.jsonl:2"}, Where::kMany);
  }
  write_file(lines, good + std::string("{\"tokens\"\0: [1]}\n", 17));
  expect({arguments, 2, "p.jsonl:2"});
  write_file(lines, good + "{\"tokens\": [1], \"id\": \"\xff\"}\n");
  expect({arguments, 2, "p.jsonl:2"});
  write_file(lines, good + std::string(100000, '['));
  expect({arguments, 2, "p.jsonl:2"});
  expect({"generate --model " + kTiny + " --prompts " + folder.path().string(), 2, folder.path().string()});
  CHECK(!std::filesystem::exists(folder / "o.jsonl"));
  CHECK(!std::filesystem::exists(folder / "o.jsonl.partial"));
}

TEST_CASE("prompts are bytes: invalid UTF-8 and zero bytes work, also where a message would quote them") {
  const ScratchFolder folder;
  write_file(folder / "p.txt", std::string("a\xff\xc3(\n\0b\0\n\xed\xa0\x80\n", 13));
  for (const int ranks : {0, 2}) {
    const Ended ended = run_program(ranks, "generate --model " + kDemo + " --prompts " + (folder / "p.txt") +
                                               " --max-new-tokens 2 --output " + (folder / "o.jsonl"));
    INFO(ended.err);
    CHECK(ended.status == 0);
    const std::string results = read_file(folder / "o.jsonl");
    CHECK(std::count(results.begin(), results.end(), '\n') == 3);
    CHECK(results.find("a\xEF\xBF\xBD\xEF\xBF\xBD(") != std::string::npos);
    CHECK(results.find("\\u0000b\\u0000") != std::string::npos);
  }
  write_file(folder / "empty.txt", "\n");
  expect({"generate --model " + kDemo + " --prompts " + (folder / "empty.txt"), 2, "empty.txt:1"});
  expect({"generate --model " + kDemo + " --prompt ''", 2, "prompt"});
  expect({"generate --model \"$(printf 'a\\377\\033[31m\\n')\" --prompt x", 2, "stagecoach: "});
}

TEST_CASE("more ranks than blocks, and stages that do not match the ranks") {
  const Ended ended = run_program(5, "bench --model " + kTiny + " --prompt-tokens 4 --new-tokens 2");
  INFO(ended.err);
  CHECK(ended.status == 2);
  CHECK(ended.messages() == 1);
  CHECK(ended.says("3 blocks"));
  const Ended loopback = run_program(0, "bench --model " + kTiny + " --prompt-tokens 4 --new-tokens 2 --stages 4");
  CHECK(loopback.status == 2);
  CHECK(loopback.says("3 blocks"));
  const Ended other = run_program(3, "bench --model " + kTiny + " --prompt-tokens 4 --new-tokens 2 --stages 2");
  INFO(other.err);
  CHECK(other.status == 2);
  CHECK(other.messages() == 1);
  CHECK(other.says("mpirun -n 2"));
}

TEST_CASE("run files that do not fit the model") {
  const ScratchFolder folder;
  const std::string arguments =
      "bench --model " + kTiny + " --prompt-tokens 4 --new-tokens 2 --config " + (folder / "run.yaml");
  write_file(folder / "run.yaml",
             "pipeline:\n  stages:\n    - {blocks: [0, 0]}\n    - {blocks: [1, 1]}\n    - {blocks: [2, 2]}\n");
  CHECK(run_program(0, arguments).status == 0);
  CHECK(run_program(3, arguments).status == 0);
  write_file(folder / "run.yaml", "pipeline:\n  stages:\n    - {blocks: [0, 0]}\n    - {blocks: [2, 2]}\n");
  expect({arguments, 2, "run.yaml:4:"});
  write_file(folder / "run.yaml", "pipeline:\n  stages:\n    - {blocks: [0, 0]}\n    - {blocks: [1, 7]}\n");
  expect({arguments, 2, "run.yaml:4:"});
  write_file(folder / "run.yaml", "pipeline:\n  stages:\n    - {blocks: [0, 0]}\n    - {blocks: [1, 1]}\n");
  expect({arguments, 2, "run.yaml"});
  write_file(folder / "run.yaml", "pipelin:\n  stages: 3\n");
  expect({arguments, 2, "pipeline"});
  write_file(folder / "run.yaml", "pipeline: [\n");
  expect({arguments, 2, "run.yaml:"});
}

TEST_CASE("run files of every wrong form") {
  const ScratchFolder folder;
  const std::string run_file = folder / "run.yaml";
  const std::string arguments = "bench --model " + kTiny + " --prompt-tokens 4 --new-tokens 2 --config " + run_file;
  const auto stages = [](const std::string& list) { return "pipeline:\n  stages:\n" + list; };
  const std::vector<std::string> wrong = {
      "- a\n- list\n",
      "just text",
      "model: [a]\n",
      "model: {a: b}\n",
      "timeout: soon\n",
      "quiet: perhaps\n",
      "pipeline: 3\n",
      "pipeline:\n\tchunk_tokens: 3\n",
      "pipeline: {chunk_tokens: 3, chunk_tokens: 4}\n",
      "quiet: true\nquiet: false\n",
      "a: &a [*a]\n",
      "--- {}\n--- {}\n",
      "model: \"unclosed\n",
      std::string("\0\1\2\xff\xfe binary", 12),
      "\xff\xfe",
      std::string(20000, '['),
      std::string(20000, '{'),
      stages("    - {blocks: [0, 2]}\n    - {blocks: [2, 2]}\n"),  // overlap
      stages("    - {blocks: [1, 2]}\n    - {blocks: [0, 0]}\n"),  // order
      stages("    - {blocks: [1, 0]}\n    - {blocks: [1, 2]}\n"),  // backwards
      stages("    - {blocks: [-1, 2]}\n"),                         // negative
      stages("    - {blocks: [0, 2, 3]}\n"),                       // three
      stages("    - {blocks: [0, 9999999999999]}\n"),              // too large
      stages("    - {blocks: 0-2}\n"),
      stages("    - {}\n"),
      stages("    - 3\n"),                              // no list
      stages("    - {blocks: [0, 2], devise: cpu}\n"),  // unknown key
      stages("    - {blocks: [0, 2], memory: lots}\n"),
      "pipeline: {stages: []}\n",
  };
  for (std::size_t i = 0; i < wrong.size(); ++i) {
    write_file(run_file, wrong[i]);
    INFO(i);
    expect({arguments, 2, "run.yaml"}, Where::kMany);
  }
  write_file(run_file, "");  // nothing to say is no mistake
  CHECK(run_program(0, arguments).status == 0);
  std::filesystem::remove(run_file);
  std::filesystem::create_directory(run_file);
  expect({arguments, 2, "run.yaml"});
}

TEST_CASE("a sequence that no memory can hold is refused with the numbers") {
  const Ended ended = run_program(
      0, "bench --model synthetic:gpt2-xl,n_positions=1073741824 --prompt-tokens 1000000000 --new-tokens 2");
  INFO(ended.err);
  CHECK(ended.status == 3);
  CHECK(ended.messages() == 1);
  CHECK(ended.says("available"));
  CHECK(ended.seconds < on_this_machine(10.0));
}
