#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "partition/run_file.hpp"
#include "partition/wording.hpp"

namespace {

using stagecoach::check_stage_blocks;
using stagecoach::ModelConfig;
using stagecoach::parse_run_file;
using stagecoach::parse_size;
using stagecoach::PlanError;
using stagecoach::RunFile;

std::string error_of(const std::string& text) {
  try {
    parse_run_file(text, "run.yaml");
  } catch (const PlanError& error) {
    return error.what();
  }
  return "no error";
}

std::string setting(const RunFile& file, const std::string& key) {
  for (const stagecoach::Setting& s : file.settings) {
    if (s.key == key) return s.value + " @" + s.where;
  }
  return "absent";
}

TEST_CASE("a run file's settings are flattened, in order, with their places") {
  const RunFile file = parse_run_file(
      "model: /data/gpt2-xl\n"
      "dtype: float16\n"
      "pipeline:\n"
      "  stages:\n"
      "    - {blocks: [0, 11],  device: \"cuda:0\", memory: 8GiB}\n"
      "    - {blocks: [12, 25], device: cpu}\n"
      "    - {blocks: [26, 47], host: node02}\n"
      "  chunk_tokens: auto\n"
      "generation: {max_new_tokens: 128, temperature: 0.8, stop: [a, \"b c\"], ignore_eos: true}\n",
      "run.yaml");
  CHECK(setting(file, "model") == "/data/gpt2-xl @run.yaml:1:8");
  CHECK(setting(file, "chunk-tokens") == "auto @run.yaml:8:17");
  CHECK(setting(file, "max-new-tokens") == "128 @run.yaml:9:30");
  CHECK(setting(file, "ignore-eos") == "true @run.yaml:9:83");
  CHECK(file.settings.size() == 8);
  const auto chunks = stagecoach::parse_run_file("pipeline: {chunk_tokens: [512, 448, 1]}\n", "r");
  CHECK(setting(chunks, "chunk-tokens") == "512,448,1 @r:1:26");
  REQUIRE(file.stages);
  REQUIRE(file.stages->size() == 3);
  CHECK((*file.stages)[1].blocks == stagecoach::BlockRange{12, 25});
  CHECK((*file.stages)[0].device == stagecoach::DeviceWish{stagecoach::DeviceKind::kCuda, 0});
  CHECK((*file.stages)[0].memory_bytes == std::int64_t{8} << 30);
  CHECK((*file.stages)[2].host == "node02");
  CHECK(file.stage_places == std::vector<std::string>{"run.yaml:5:7", "run.yaml:6:7", "run.yaml:7:7"});
}

TEST_CASE("a file that says nothing is fine") {
  CHECK(parse_run_file("", "run.yaml").settings.empty());
  CHECK(parse_run_file("# nothing yet\n", "run.yaml").settings.empty());
  CHECK(parse_run_file("pipeline:\ngeneration: {}\n", "run.yaml").settings.empty());
}

TEST_CASE("stages may be a number or auto") {
  CHECK(setting(parse_run_file("pipeline: {stages: 3}", "r"), "stages") == "3 @r:1:20");
  CHECK(setting(parse_run_file("pipeline: {stages: auto}", "r"), "stages") == "auto @r:1:20");
  CHECK_FALSE(parse_run_file("pipeline: {stages: 3}", "r").stages);
}

TEST_CASE("every mistake has its place, key and advice") {
  struct Row {
    const char* text;
    const char* error;
  };
  const Row rows[] = {
      {"modle: x\n", "run.yaml:1:1: modle: unknown key; did you mean model?"},
      {"model: x\nmax_new_tokens: 3\n",
       "run.yaml:2:1: max_new_tokens: stands in the top level but belongs in the group generation"},
      {"generation:\n  model: x\n", "run.yaml:2:3: model: stands in the group generation but belongs in the top level"},
      {"generation:\n  max-new-token: 3\n", "run.yaml:2:3: max-new-token: unknown key; did you mean max_new_tokens?"},
      {"zzzzzzzzzz: 1\n", "run.yaml:1:1: zzzzzzzzzz: unknown key"},
      {"model: a\ndtype: float32\nmodel: b\n", "run.yaml:3:1: model: given twice, first at run.yaml:1:1"},
      {"threads: many\n", "run.yaml:1:10: threads: many is not a whole number (without quotes) or auto"},
      {"threads: \"4\"\n", "run.yaml:1:10: threads: the text \"4\" is not a whole number (without quotes) or auto"},
      {"threads: 1.5\n", "run.yaml:1:10: threads: 1.5 is not a whole number (without quotes) or auto"},
      {"timeout: .inf\n", "run.yaml:1:10: timeout: .inf is not a number (without quotes)"},
      {"timeout: inf\n", "run.yaml:1:10: timeout: inf is not a number (without quotes)"},
      {"quiet: yes\n", "run.yaml:1:8: quiet: yes is not true or false"},
      {"model: [a]\n", "run.yaml:1:8: model: a list is no text; write a value after the colon"},
      {"model:\n", "run.yaml:1:1: model: nothing is no text; write a value after the colon"},
      {"- model\n", "run.yaml:1:1: a list where keys were expected; write key: value"},
      {"hello\n", "run.yaml:1:1: hello where keys were expected; write key: value"},
      {"pipeline: 4\n", "run.yaml:1:11: pipeline: 4 is not a group of keys"},
      {"memory_per_rank: 8GB\n",
       "run.yaml:1:18: memory_per_rank: 8GB is not a size; write bytes or a whole number with KiB, MiB or "
       "GiB, as in 8GiB"},
      {"pipeline: {stages: []}\n",
       "run.yaml:1:20: stages: the list is empty; leave stages out for as many as there are ranks"},
      {"pipeline: {stages: many}\n", "run.yaml:1:20: stages: many is not a list of stages, a number or auto"},
      {"pipeline: {stages: [4]}\n", "run.yaml:1:21: stages: 4 is no stage; write {blocks: [first, last]}"},
      {"pipeline: {stages: [{device: cpu}]}\n",
       "run.yaml:1:21: stages: a stage without blocks; write {blocks: [first, last]}"},
      {"pipeline: {stages: [{blocks: [0, 3], devise: cpu}]}\n",
       "run.yaml:1:38: devise: unknown key of a stage (blocks, device, memory, host); did you mean device?"},
      {"pipeline: {stages: [{blocks: [0, 3], device: gpu0}]}\n",
       "run.yaml:1:46: device: gpu0 is not auto, cpu, cuda or cuda:N"},
      {"pipeline: {stages: [{blocks: [0, 3], blocks: [0, 3]}]}\n",
       "run.yaml:1:38: blocks: given twice, first at run.yaml:1:22"},
      {"pipeline: {stages: [{blocks: [0]}]}\n",
       "run.yaml:1:30: blocks: must be [first, last], both counted from 0 and both included"},
      {"pipeline: {stages: [{blocks: [-1, 3]}]}\n",
       "run.yaml:1:31: blocks: -1 is not the number of a block; they count from 0"},
      {"pipeline: {stages: [{blocks: [3, 0]}]}\n", "run.yaml:1:30: blocks: [3, 0] ends before it begins; write [0, 3]"},
      {"model: &a x\n", "run.yaml:1:8: an anchor, which run files cannot have; leave out the '&' word"},
      {"model: !!str x\n", "run.yaml:1:8: a tag (tag:yaml.org,2002:str), which run files cannot have; leave it out"},
      {"model: x\n---\nmodel: y\n", "run.yaml:2:1: a second document; a run file is one"},
      {"? [a]\n: b\n", "run.yaml:1:3: a key must be a word"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.text);
    CHECK(error_of(row.text) == row.error);
  }
}

TEST_CASE("gaps, overlaps, wrong order and a missing first block are errors at the stage") {
  const auto with = [](const char* stages) { return error_of(std::string("pipeline:\n  stages:\n") + stages); };
  CHECK(with("    - {blocks: [1, 3]}\n") ==
        "run.yaml:3:7: blocks: stage 0 [1, 3] leaves out blocks; it must begin with block 0");
  CHECK(with("    - {blocks: [0, 3]}\n    - {blocks: [5, 7]}\n") ==
        "run.yaml:4:7: blocks: stage 1 [5, 7] leaves out blocks; it must begin with block 4");
  CHECK(with("    - {blocks: [0, 3]}\n    - {blocks: [3, 7]}\n") ==
        "run.yaml:4:7: blocks: stage 1 [3, 7] repeats blocks or is out of order; it must begin with block 4");
  CHECK(with("    - {blocks: [0, 3]}\n    - {blocks: [8, 9]}\n    - {blocks: [4, 7]}\n") ==
        "run.yaml:4:7: blocks: stage 1 [8, 9] leaves out blocks; it must begin with block 4");
}

TEST_CASE("the model's last block is checked once the model is known") {
  ModelConfig model;
  model.n_layer = 12;
  const auto error = [&](const char* text) -> std::string {
    try {
      check_stage_blocks(parse_run_file(text, "run.yaml"), model);
    } catch (const PlanError& e) {
      return e.what();
    }
    return "fine";
  };
  CHECK(error("model: x") == "fine");
  CHECK(error("pipeline: {stages: [{blocks: [0, 5]}, {blocks: [6, 11]}]}") == "fine");
  CHECK(error("pipeline: {stages: [{blocks: [0, 5]}, {blocks: [6, 10]}]}") ==
        "run.yaml:1:39: blocks: the last stage ends with block 10 but the model's last block is 11");
  CHECK(error("pipeline: {stages: [{blocks: [0, 5]}, {blocks: [6, 47]}]}") ==
        "run.yaml:1:39: blocks: stage 1 [6, 47] but the model has blocks 0 to 11");
}

TEST_CASE("broken and hostile files are errors, not crashes") {
  CHECK(error_of("model: [a\n").find("not YAML: ") != std::string::npos);
  CHECK(error_of("model: \"a\nthreads: 3\n\n").find("not YAML: ") != std::string::npos);
  CHECK(error_of("a: *b\n").find("run.yaml:1:") == 0);
  CHECK(error_of(std::string("model\0: x", 9)).find("byte 0x00") != std::string::npos);
  CHECK(error_of("\xff\xfe m\0o\0").find("byte 0xff") != std::string::npos);
  CHECK(error_of(std::string(100000, '[')).find("run.yaml:1:") == 0);
  CHECK(error_of(std::string(100000, '{')).find("run.yaml:1:") == 0);
  CHECK(error_of("a: " + std::string(20, '[') + std::string(20, ']')).find("nested too deeply") != std::string::npos);
  CHECK(error_of(std::string((1 << 20) + 1, '#')) == "run.yaml: larger than a run file can be (1 MiB)");
  CHECK(error_of("model: x\n" + std::string("\x1b[31m: y\n")).find("byte 0x1b") != std::string::npos);
}

TEST_CASE("reading from disk") {
  CHECK_THROWS_WITH_AS(stagecoach::read_run_file("/nowhere/run.yaml"),
                       "/nowhere/run.yaml: cannot open the run file: No such file or directory", PlanError);
  CHECK_THROWS_AS(stagecoach::read_run_file("/"), PlanError);
  const std::filesystem::path path = std::filesystem::temp_directory_path() / "stagecoach_test_run_file.yaml";
  std::ofstream(path) << "model: m\n";
  CHECK(stagecoach::read_run_file(path.string()).settings.size() == 1);
  std::filesystem::remove(path);
}

TEST_CASE("sizes") {
  CHECK(parse_size("1073741824") == 1073741824);
  CHECK(parse_size("16KiB") == 16384);
  CHECK(parse_size("512MiB") == 536870912);
  CHECK(parse_size("8GiB") == 8589934592);
  for (const char* bad :
       {"", "GiB", "8GB", "8 GiB", "-1GiB", "0", "1.5GiB", "9223372036854775807KiB", "8GiBs", "99999999999999999999"}) {
    CAPTURE(bad);
    CHECK_THROWS_AS(parse_size(bad), PlanError);
  }
}

TEST_CASE("the nearest word is found, and words stay on one line") {
  CHECK(stagecoach::nearest("max-new-tokns", {"max_new_tokens", "model"}) == "max_new_tokens");
  CHECK(stagecoach::nearest("x", {"model"}).empty());
  CHECK(stagecoach::nearest(std::string(1000, 'm'), {"model"}).empty());
  CHECK(stagecoach::shown("a\nb\x1b") == "a\\x0ab\\x1b");
  CHECK(stagecoach::shown(std::string(1000, 'a')).size() == 83);
  CHECK(stagecoach::shown("\xc3\xa4") == "\xc3\xa4");
  CHECK(stagecoach::printable("\xc3\xa4\n\x7f~") == "\\xc3\\xa4\\x0a\\x7f~");
  CHECK(stagecoach::printable("abcd", 3) == "abc...");
}

}  // namespace
