#include "runtime/keras_h5.hpp"

#include <fmt/format.h>

#include "runtime/h5_inventory.hpp"
#include "runtime/hdf5_tensors.hpp"
#include "runtime/stored_tensors.hpp"

namespace stagecoach {
namespace {

constexpr std::string_view kRoot = "/transformer/";
constexpr std::string_view kBlock = "h_._";

// The last part of a path in Keras' words and in Hugging Face's.
std::string_view translated(std::string_view part) {
  if (part == "gamma" || part == "embeddings") return "weight";
  if (part == "beta") return "bias";
  return part;
}

}  // namespace

std::string name_of_keras_path(const std::string& path) {
  const std::size_t root = path.rfind(kRoot);
  if (root == std::string::npos) return path;
  std::string_view rest = std::string_view(path).substr(root + kRoot.size());
  if (rest.ends_with(":0")) rest.remove_suffix(2);
  std::string name;
  if (rest.starts_with(kBlock)) {
    name = "h.";
    rest.remove_prefix(kBlock.size());
  }
  for (std::size_t slash = rest.find('/'); slash != std::string_view::npos; slash = rest.find('/')) {
    name += rest.substr(0, slash);
    name += '.';
    rest.remove_prefix(slash + 1);
  }
  return name.append(translated(rest));
}

std::unique_ptr<WeightSource> open_keras_h5(const std::filesystem::path& file, const ModelConfig& config) {
  TensorCatalogue catalogue(file, kH5TensorTypes, "config.json");
  const std::size_t index = catalogue.add_file(file);
  try {
    for (const H5Dataset& dataset : inventory_of(file.string(), {}, {}).datasets) {
      StoredTensor tensor = stored_tensor(dataset, name_of_keras_path(dataset.path), file.string());
      const bool row = tensor.shape.size() == 2 && tensor.shape.front() == 1;
      if (row && tensor.name.ends_with(".bias")) tensor.shape.erase(tensor.shape.begin());
      catalogue.add(std::move(tensor), index);
    }
  } catch (const Hdf5Error& error) {
    throw WeightError(error.what());
  }
  return make_stored_source(std::move(catalogue), config);
}

}  // namespace stagecoach
