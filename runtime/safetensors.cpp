#include "runtime/safetensors.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <unordered_map>

#include "partition/wording.hpp"
#include "runtime/json.hpp"
#include "runtime/stored_tensors.hpp"

namespace stagecoach {
namespace {

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";

std::optional<DType> dtype_of_stored(std::string_view name) {
  if (name == "F32") return DType::kFloat32;
  if (name == "F16") return DType::kFloat16;
  if (name == "BF16") return DType::kBFloat16;
  return std::nullopt;
}

TensorCatalogue catalogue_from(const std::filesystem::path& origin) {
  return {origin, "F32, F16 or BF16", "config.json"};
}

void add_tensors_of(const std::filesystem::path& path, TensorCatalogue& catalogue) {
  const std::size_t file = catalogue.add_file(path);
  for (SafetensorsEntry& entry : read_safetensors_header(catalogue.file(file))) {
    StoredTensor tensor;
    tensor.name = entry.name;
    tensor.stored_name = std::move(entry.name);
    tensor.dtype = dtype_of_stored(entry.dtype);
    tensor.type = std::move(entry.dtype);
    tensor.shape = std::move(entry.shape);
    tensor.offset = entry.offset;
    tensor.bytes = entry.bytes;
    catalogue.add(std::move(tensor), file);
  }
}

// Index problems are told in terms of the index; the shards' own checks follow when they are opened.
std::vector<std::pair<std::string, std::string>> read_weight_map(const std::filesystem::path& path) {
  const std::string file = path.string();
  Json index;
  try {
    index = parse_json(read_text_file(path, kMaxSafetensorsHeaderBytes));
  } catch (const JsonError& error) {
    throw WeightError(fmt::format("{}: {}", file, error.what()));
  }
  const Json* map = index.find("weight_map");
  if (map == nullptr || map->object() == nullptr) {
    throw WeightError(fmt::format("{}: weight_map: is missing or no object from tensor names to files", file));
  }
  std::vector<std::pair<std::string, std::string>> result;
  for (const auto& [tensor, value] : *map->object()) {
    const std::string* shard = value.string();
    const bool plain = shard != nullptr && !shard->empty() && *shard != "." && *shard != ".." &&
                       shard->find_first_of(std::string_view("/\\\0", 3)) == std::string::npos;
    if (!plain) {
      throw WeightError(fmt::format("{}: weight_map: tensor {}: {} is not a plain file name in the same directory",
                                    file, printable(tensor), shard != nullptr ? printable(*shard) : value.type_name()));
    }
    result.emplace_back(tensor, *shard);
  }
  return result;
}

TensorCatalogue open_shards(const std::filesystem::path& directory) {
  const std::filesystem::path index_path = directory / kIndexFile;
  const auto weight_map = read_weight_map(index_path);
  std::vector<std::string> shards;
  for (const auto& [tensor, shard] : weight_map) shards.push_back(shard);
  std::sort(shards.begin(), shards.end());
  shards.erase(std::unique(shards.begin(), shards.end()), shards.end());
  TensorCatalogue catalogue = catalogue_from(index_path);
  for (const std::string& shard : shards) {
    if (!std::filesystem::exists(directory / shard)) {
      throw WeightError(
          fmt::format("{}: the shard {} is missing from the directory", index_path.string(), printable(shard)));
    }
    add_tensors_of(directory / shard, catalogue);
  }
  // Both ways: what the index promises is there, and nothing is there that it does not know.
  std::unordered_map<std::string_view, std::string_view> promised;
  for (const auto& [tensor, shard] : weight_map) {
    promised.emplace(tensor, shard);
    const std::string name(without_prefix(tensor));
    if (is_mask_buffer(name)) continue;
    const StoredTensor* stored = catalogue.find(name);
    if (stored == nullptr || stored->stored_name != tensor || catalogue.file_of(*stored).path().filename() != shard) {
      throw WeightError(fmt::format("{}: tensor {}: is not in {}, where the index says it is", index_path.string(),
                                    printable(tensor), printable(shard)));
    }
  }
  for (const StoredTensor& stored : catalogue.all()) {
    if (!promised.contains(stored.stored_name)) {
      throw WeightError(fmt::format("{}: tensor {}: is in {}, but not in the index", index_path.string(),
                                    printable(stored.stored_name),
                                    catalogue.file_of(stored).path().filename().string()));
    }
  }
  return catalogue;
}

TensorCatalogue open_catalogue(const std::filesystem::path& directory) {
  if (std::filesystem::exists(directory / kSingleFile)) {
    TensorCatalogue catalogue = catalogue_from(directory / kSingleFile);
    add_tensors_of(directory / kSingleFile, catalogue);
    return catalogue;
  }
  if (std::filesystem::exists(directory / kIndexFile)) return open_shards(directory);
  for (const char* other : {"pytorch_model.bin", "pytorch_model.bin.index.json", "flax_model.msgpack"}) {
    if (std::filesystem::exists(directory / other)) {
      throw WeightError(fmt::format(
          "{}: has {} but no {}; this version reads safetensors and tf_model.h5: load the model with Hugging "
          "Face transformers and save it with save_pretrained(..., safe_serialization=True)",
          directory.string(), other, kSingleFile));
    }
  }
  throw WeightError(
      fmt::format("{}: has no weights; expected {}, {} or tf_model.h5", directory.string(), kSingleFile, kIndexFile));
}

}  // namespace

std::unique_ptr<WeightSource> open_safetensors(const std::filesystem::path& directory, const ModelConfig& config) {
  return make_stored_source(open_catalogue(directory), config);
}

bool has_safetensors(const std::filesystem::path& directory) {
  return std::filesystem::exists(directory / kSingleFile) || std::filesystem::exists(directory / kIndexFile);
}

}  // namespace stagecoach
