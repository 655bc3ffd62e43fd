// The YAML run file: what the command line can say, in a file, and which blocks go where.
//
// Reading checks everything that can be known without the model: keys, types, values, order. Every error is a PlanError
// "FILE:LINE:COLUMN: key: what is wrong; what would work" (unknown keys suggest the nearest known one). Knows no
// defaults: a field that the file does not set stays empty, so that the command line can win.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "partition/plan.hpp"

namespace stagecoach {

// A run-file value with the place it came from, for later messages: "run.yaml:3:7".
struct Setting {
  std::string key;    // command-line name without dashes: "max-new-tokens"
  std::string value;  // as text, as the command line would take it
  std::string where;
  std::string group = {};  // of the run file that it stood in; empty at the top
};

struct RunFile {
  std::string path;
  std::vector<Setting> settings;  // scalars, in file order; nested groups (pipeline, generation) are flattened
  std::optional<std::vector<StageSpec>> stages;  // explicit `pipeline: stages:` list
  std::vector<std::string> stage_places;         // "run.yaml:5:7" per stage
};

// Paths in a run file count from the current directory, as on the command line.
RunFile read_run_file(const std::string& path);
RunFile parse_run_file(const std::string& text, const std::string& path);

// Throws PlanError with the stage's place unless the explicit stages, if any, end with the model's last block. (Gaps,
// overlaps and a missing first block are already refused by reading.)
void check_stage_blocks(const RunFile& run_file, const ModelConfig& model);

// Every key that a run file knows, as its Setting is called; those of several groups once.
std::vector<std::string> run_file_keys();

// "8GiB", "512MiB", "16KiB", "1073741824" -> bytes. Throws PlanError naming the text.
std::int64_t parse_size(const std::string& text);

}  // namespace stagecoach
