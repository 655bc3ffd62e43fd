#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <string>
#include <vector>

#include "launch/command_line.hpp"
#include "launch/option_table.hpp"
#include "tests/unit/command_words.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

TEST_CASE("bench and plan have keys of one name in the run file") {
  const std::string yaml = "model: m\nbench: {json: f, batch: 3}\nplan: {context: 7, svg: d.svg, new_tokens: 2}\n";
  const Options plan = options_of({"plan", "--config", "r"}, yaml);
  CHECK_FALSE(plan.json);
  CHECK(plan.context == 7);
  CHECK(plan.svg_path == "d.svg");
  const Options bench = options_of({"bench", "--config", "r"}, yaml);
  CHECK(bench.json_path == "f");
  CHECK(bench.batch == 3);
}

TEST_CASE("memory budgets: of all ranks, of each stage, the command line wins") {
  CHECK_FALSE(options_of(generate({})).memory_per_rank);
  CHECK(options_of(generate({"--memory-per-rank=8GiB"})).memory_per_rank == std::int64_t{8} << 30);
  CHECK(options_of(generate({"--memory-per-rank", "1000000"})).memory_per_rank == 1000000);
  for (const char* wrong : {"8GB", "0", "-1", "", "1.5GiB", "9999999999GiB", "GiB", "8 GiB", "lots"}) {
    CAPTURE(wrong);
    const std::string error = error_of(generate({fmt::format("--memory-per-rank={}", wrong)}));
    CHECK(error ==
          fmt::format("--memory-per-rank: {} is not a size; write bytes or a whole number with KiB, MiB or GiB, "
                      "as in 8GiB",
                      wrong));
  }
  const Words words = generate({"--config=r"});
  const std::string yaml =
      "memory_per_rank: 2GiB\npipeline: {stages: [{blocks: [0, 1], memory: 1GiB}, {blocks: [2, 3]}]}";
  const Options listed = options_of(words, yaml);
  CHECK(listed.memory_per_rank == std::int64_t{2} << 30);
  CHECK(listed.run_file.stages->at(0).memory_bytes == std::int64_t{1} << 30);
  CHECK_FALSE(listed.run_file.stages->at(1).memory_bytes);
  const Options given = options_of(generate({"--config=r", "--memory-per-rank=3GiB"}), yaml);
  CHECK(given.memory_per_rank == std::int64_t{3} << 30);
  CHECK_FALSE(given.run_file.stages->at(0).memory_bytes);
  CHECK(error_of(generate({"--check", "--memory-per-rank=1GiB"})).find("--check: ") == 0);
  CHECK(error_of(generate({"--check", "--config=r"}), yaml).find("--check: ") == 0);
}

TEST_CASE("the run file fills in, the command line wins") {
  const std::string yaml =
      "model: from-file\nthreads: 3\nprompt: [a, b]\nquiet: true\npipeline: {chunk_tokens: 32, in_flight: "
      "2}\n"
      "generation: {max_new_tokens: 9, ignore_eos: true}\n";
  const Options file = options_of({"generate", "--config", "run.yaml"}, yaml);
  CHECK(file.model == "from-file");
  CHECK(file.threads == 3);
  CHECK(file.prompt_texts == Words{"a", "b"});
  CHECK(file.chunk_tokens == 32);
  CHECK(file.max_new_tokens == 9);
  CHECK(file.ignore_eos);
  CHECK(file.quiet);
  CHECK(file.run_file.path == "run.yaml");

  const Options both = options_of({"generate", "--config", "run.yaml", "--model", "m", "--threads", "auto", "--prompt",
                                   "c", "--max-new-tokens", "4", "--ignore-eos=false", "-v"},
                                  yaml);
  CHECK(both.model == "m");
  CHECK_FALSE(both.threads);
  CHECK(both.prompt_texts == Words{"c"});
  CHECK(both.max_new_tokens == 4);
  CHECK_FALSE(both.ignore_eos);
  CHECK_FALSE(both.quiet);
  CHECK(both.verbose);

  const Options prompts = options_of({"generate", "--config", "run.yaml", "--prompts", "f.txt"}, yaml);
  CHECK(prompts.prompt_texts.empty());
  CHECK(prompts.prompts_path == "f.txt");
}

TEST_CASE("mistakes in the run file have their place") {
  const Words words = {"generate", "--config", "run.yaml", "--model", "m", "--prompt", "p"};
  CHECK(error_of(words, "threads: 0\n") == "run.yaml:1:10: threads: 0 is not a number from 1 to 4096, nor auto");
  CHECK(error_of(words, "generation:\n  temperature: -1\n") ==
        "run.yaml:2:16: temperature: -1 is not a number from 0 to 1000");
  CHECK(error_of(words, "threads: 0\nmodel: x\n") != "no error");
  CHECK_THROWS_AS(parse(words, "modle: x\n"), PlanError);
}

TEST_CASE("a run file serves several commands") {
  const std::string yaml =
      "model: m\nprompts: p.txt\ngeneration: {temperature: 0.8, max_new_tokens: 5}\nbench: {batch: 4}\n";
  CHECK(options_of({"bench", "--config", "r"}, yaml).batch == 4);
  CHECK(options_of({"tokenize", "--config", "r"}, yaml).model == "m");
  CHECK(error_of({"bench", "--config", "r"}, "model: m\ngeneration: {max_new_tokens: 0}\n") ==
        "r:2:30: max-new-tokens: 0 is not a number from 1 to 1073741824");
}

TEST_CASE("explicit stages are followed unless --stages says otherwise") {
  const std::string yaml = "pipeline:\n  stages:\n    - {blocks: [0, 1], device: cpu}\n    - {blocks: [2, 11]}\n";
  const Words words = {"generate", "--config", "r", "--model", "m", "--prompt", "p"};
  const Options listed = options_of(words, yaml);
  REQUIRE(listed.run_file.stages);
  CHECK(listed.run_file.stages->size() == 2);
  CHECK(listed.stages == 2);
  Words three = words;
  three.insert(three.end(), {"--stages", "3"});
  const Options counted = options_of(three, yaml);
  CHECK_FALSE(counted.run_file.stages);
  CHECK(counted.run_file.stage_places.empty());
  CHECK(counted.stages == 3);
  CHECK(options_of(words, "pipeline: {stages: 5}").stages == 5);
  const Options on_gpu = options_of(words, "pipeline: {stages: [{blocks: [0, 1], device: \"cuda:1\"}]}");
  CHECK(on_gpu.run_file.stages->at(0).device == DeviceWish{DeviceKind::kCuda, 1});
  const Options on_host = options_of(words, "pipeline: {stages: [{blocks: [0, 1], host: n1}]}");
  CHECK(on_host.run_file.stages->at(0).host == "n1");
}

TEST_CASE("batch jobs: times as Slurm takes them, and the run file has them too") {
  const Options o =
      options_of({"slurm", "--config", "r", "--time", "1-12:00:00", "score", "--write", "j"},
                 "model: m\nplan: {write: p}\nslurm: {time: 2:00:00, partition: low}\npipeline: {stages: 3}\n");
  CHECK(o.slurm_time == "1-12:00:00");
  CHECK(o.slurm_partition == "low");
  CHECK(o.slurm_path == "j");
  CHECK(o.job == Command::kScore);
  CHECK(o.stages == 3);
  const auto error = [](const char* option, const char* value) {
    try {
      options_of({"slurm", "--config", "r", option, value}, "model: m\n");
    } catch (const std::exception& e) {
      return std::string(e.what());
    }
    return std::string("no error");
  };
  for (const char* time : {"90", "90:00", "1:30:00", "2-0", "2-12:30", "0-0:0:1"}) {
    CAPTURE(time);
    CHECK(error("--time", time) == "no error");
  }
  for (const char* time : {"", "0", "1h", "1:", ":1", "-1", "1-", "1:2:3:4", "1-2-3", "1:-2", "99999999999", "1 2"}) {
    CAPTURE(time);
    CHECK(error("--time", time).find("is not a time as Slurm takes it") != std::string::npos);
  }
  for (const char* partition : {"", "a b", "a;b", "a\nb"}) {
    CHECK(error("--partition", partition).find("is not the name of a partition") != std::string::npos);
  }
  CHECK(options_of(generate({"--config", "r"}), "slurm: {time: 2:00:00}\n").slurm_time == "2:00:00");
}

TEST_CASE("run-file keys and options are the same set") {
  const Words keys = run_file_keys();
  for (const std::string& key : keys) {
    CAPTURE(key);
    CHECK(find_option(key, Command::kGenerate) != nullptr);
  }
  for (const OptionSpec& spec : option_table()) {
    const std::string name(spec.name);
    if (name == "config" || name == "help" || name == "version" || name == "decode") continue;
    CAPTURE(name);
    CHECK(std::count(keys.begin(), keys.end(), name) == 1);
  }
}

}  // namespace
