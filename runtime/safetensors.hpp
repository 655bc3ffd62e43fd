// The safetensors format: a header that is checked before anything is read, and a WeightSource over one file
// or over the shards of an index.
//
// A file is 8 bytes of header length (little-endian), the header (JSON: name -> dtype, shape, data_offsets)
// and the data. As the format demands, the tensors cover the data without holes or overlaps; whatever a
// header says, only bytes that it owns are read. Knows the model only through its tensor table.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "partition/model.hpp"
#include "runtime/input_file.hpp"
#include "runtime/weight_source.hpp"

namespace stagecoach {

struct SafetensorsEntry {
  std::string name;   // as in the file
  std::string dtype;  // as in the file: "F16"
  std::vector<std::int64_t> shape;
  std::int64_t offset = 0;  // from the start of the file
  std::int64_t bytes = 0;
};

constexpr std::int64_t kMaxSafetensorsHeaderBytes = 100'000'000;  // the format's own limit

// Checks the header `json` of a file whose data begins at `data_offset` and holds `data_bytes`. Entries come
// in the order of the header. Throws WeightError "FILE: ...".
std::vector<SafetensorsEntry> parse_safetensors_header(std::string_view json, std::int64_t data_offset,
                                                       std::int64_t data_bytes, const std::string& file);
std::vector<SafetensorsEntry> read_safetensors_header(const InputFile& file);

// Weights of `directory`: model.safetensors, else the shards of model.safetensors.index.json. Reads headers
// only.
// make_stored_source says what is checked.
std::unique_ptr<WeightSource> open_safetensors(const std::filesystem::path& directory, const ModelConfig& config);

// Whether `directory` has one of the two.
bool has_safetensors(const std::filesystem::path& directory);

}  // namespace stagecoach
