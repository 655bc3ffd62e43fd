#include "runtime/native_model.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "kernels/weight_layout.hpp"
#include "partition/wording.hpp"
#include "runtime/checksum.hpp"
#include "runtime/h5_inventory.hpp"
#include "runtime/hdf5_file.hpp"
#include "runtime/hdf5_tensors.hpp"
#include "runtime/model_config.hpp"
#include "runtime/native_format.hpp"
#include "runtime/stored_tensors.hpp"

namespace stagecoach {
namespace {

using namespace native;

constexpr std::int64_t kMaxTokenizerBytes = std::int64_t{1} << 30;
constexpr const char* kPackedTypes = "float32, float16, bfloat16 or (matrices) int8";

[[noreturn]] void fail(const std::string& file, std::string_view what) {
  throw WeightError(fmt::format("{}: {}", file, what));
}

Json json_of(const H5Value& value) {
  if (const std::uint64_t* number = std::get_if<std::uint64_t>(&value)) {
    return *number <= INT64_MAX ? Json(static_cast<std::int64_t>(*number)) : Json(static_cast<double>(*number));
  }
  if (const bool* flag = std::get_if<bool>(&value)) return Json(*flag);
  if (const std::int64_t* number = std::get_if<std::int64_t>(&value)) return Json(*number);
  if (const double* number = std::get_if<double>(&value)) return Json(*number);
  return Json(std::get<std::string>(value));
}

// Checks what kind of file it is.
NativeLayout layout_of(const H5Inventory& inventory, const std::string& file) {
  const std::optional<H5Value> format = inventory.attribute("/", "format");
  if (!format && inventory.attribute("/", "keras_version")) {
    fail(file, "is a Keras checkpoint; give the directory that holds it and its config.json");
  }
  if (!format || *format != H5Value(std::string(kFormat))) {
    fail(file, "is an HDF5 file, but no model of stagecoach convert (a tf_model.h5 is given by its directory)");
  }
  const std::optional<H5Value> version = inventory.attribute("/", kFormatVersion);
  if (version == H5Value(kVersionOfRows)) return NativeLayout::kRows;
  if (version != H5Value(kVersionOfPanels)) {
    const Json shown = version ? json_of(*version) : Json();
    fail(file, fmt::format("has format_version {}, but this program reads versions {} and {}; convert the model again",
                           shown.integer() != nullptr ? fmt::format("{}", *shown.integer()) : "missing or no number",
                           kVersionOfRows, kVersionOfPanels));
  }
  const std::optional<H5Value> layout = inventory.attribute("/", kLayout);
  if (layout != H5Value(std::string(kPackedLayout))) {
    const auto* name = layout ? std::get_if<std::string>(&*layout) : nullptr;
    fail(file, fmt::format("has layout {}, but this program reads {}; convert the model again",
                           name != nullptr ? printable(*name) : "missing or no text", kPackedLayout));
  }
  return NativeLayout::kPanels;
}

std::uint64_t checksum_of(const H5Inventory& inventory, const std::string& path, const std::string& file) {
  const std::optional<H5Value> value = inventory.attribute(path, kChecksum);
  if (!value || !std::holds_alternative<std::uint64_t>(*value)) {
    fail(file, fmt::format("{}: has no checksum; the file is damaged, convert it again", printable(path)));
  }
  return std::get<std::uint64_t>(*value);
}

// "h.3.ln_1.bias" for "/blocks/3/ln_1.bias"; other paths stay as they are and are unknown tensors.
std::string name_of_path(const std::string& path) {
  for (const std::string_view place : {"/embedding/", "/final/"}) {
    if (path.starts_with(place)) return path.substr(place.size());
  }
  constexpr std::string_view kBlocks = "/blocks/";
  const std::size_t slash = path.starts_with(kBlocks) ? path.find('/', kBlocks.size()) : std::string::npos;
  if (slash == std::string::npos) return path;
  return fmt::format("h.{}.{}", path.substr(kBlocks.size(), slash - kBlocks.size()), path.substr(slash + 1));
}

// A file whose metadata has been checked against `contents`.
struct OpenFile {
  std::string file;
  NativeLayout layout = NativeLayout::kRows;
  ModelConfig config;
  std::vector<std::pair<H5Dataset, std::uint64_t>> tensors;              // with their checksums
  std::map<std::string, std::pair<H5Dataset, std::uint64_t>> tokenizer;  // the same, by path
};

ModelConfig read_config(const H5Inventory& inventory, const std::string& file) {
  Json::Object fields;
  for (const auto& [name, like] : config_fields(ModelConfig())) {
    const std::optional<H5Value> value = inventory.attribute("/", name);
    if (!value) fail(file, fmt::format("has no attribute {}; the file is damaged, convert it again", name));
    fields.emplace_back(name, json_of(*value));
  }
  return parse_model_config(Json(std::move(fields)), file);
}

std::vector<std::string> names_of_root_attributes() {
  std::vector<std::string> names = {"format", kFormatVersion, kLayout, "keras_version", kContents};
  for (const auto& [name, value] : config_fields(ModelConfig())) names.push_back(name);
  return names;
}

OpenFile open_file(const std::string& file) {
  H5Inventory inventory = inventory_of(file, names_of_root_attributes(), {kChecksum});
  OpenFile result{file, layout_of(inventory, file), {}, {}, {}};
  const std::optional<H5Value> contents = inventory.attribute("/", kContents);
  constexpr std::string_view kUnfinished = "is an unfinished or damaged conversion; convert the model again";
  if (!contents || *contents == H5Value(std::uint64_t{0})) fail(file, kUnfinished);
  result.config = read_config(inventory, file);
  DatasetLines lines;
  for (H5Dataset& dataset : inventory.datasets) {
    const std::uint64_t xxh3 = checksum_of(inventory, dataset.path, file);
    lines.emplace(dataset.path, line_of(dataset.type, dataset.shape, xxh3));
    if (dataset.path == kVocab || dataset.path == kMerges) {
      const std::string path = dataset.path;
      result.tokenizer.emplace(path, std::pair(std::move(dataset), xxh3));
    } else {
      result.tensors.emplace_back(std::move(dataset), xxh3);
    }
  }
  if (*contents != H5Value(contents_of(result.layout, config_fields(result.config), lines))) fail(file, kUnfinished);
  return result;
}

std::string read_text(const OpenFile& open, const char* path) {
  const auto& [dataset, xxh3] = open.tokenizer.at(path);
  const InputFile file(open.file);
  const std::int64_t offset = dataset.bytes == 0 ? 0 : dataset.offset.value_or(-1);
  const bool inside = offset >= 0 && dataset.bytes <= std::min(file.bytes(), kMaxTokenizerBytes);
  std::string text(inside ? static_cast<std::size_t>(dataset.bytes) : 0, '\0');
  if (inside) file.read(offset, std::as_writable_bytes(std::span(text)), path);
  if (!inside || xxh3_of(std::as_bytes(std::span(text))) != xxh3) {
    fail(open.file,
         fmt::format("{}: its bytes do not match their checksum; the file is damaged, convert it again", path));
  }
  return text;
}

std::optional<TokenizerTexts> read_texts(const OpenFile& open) {
  if (open.tokenizer.empty()) return std::nullopt;
  if (open.tokenizer.size() != 2) fail(open.file, "has only one of /tokenizer/vocab.json and /tokenizer/merges.txt");
  return TokenizerTexts{read_text(open, kVocab), read_text(open, kMerges)};
}

template <typename Action>
auto as_weight_errors(const Action& action) {
  try {
    return action();
  } catch (const Hdf5Error& error) {
    throw WeightError(error.what());
  }
}

}  // namespace

Model open_native_model(const std::string& file, ModelParts parts) {
  return as_weight_errors([&] {
    const OpenFile open = open_file(file);
    const bool packed = open.layout == NativeLayout::kPanels;
    TensorCatalogue catalogue(file, packed ? kPackedTypes : kH5TensorTypes, "its configuration");
    if (packed) catalogue.set_packed();
    const std::size_t index = catalogue.add_file(file);
    for (const auto& [dataset, xxh3] : open.tensors) {
      StoredTensor tensor = stored_tensor(dataset, name_of_path(dataset.path), file);
      tensor.xxh3 = xxh3;
      if (packed && dataset.element == H5Element::kInt8) tensor.dtype = DType::kInt8;
      catalogue.add(std::move(tensor), index);
    }
    Model model;
    model.name = file;
    model.config = open.config;
    model.weights = make_stored_source(std::move(catalogue), open.config);
    model.dtype = model.weights->dtype_of(tensor_table(open.config).front());
    if (parts == ModelParts::kNoTokenizer) return model;
    if (const std::optional<TokenizerTexts> texts = read_texts(open)) {
      try {
        model.tokenizer = Tokenizer::from_text(texts->vocab_json, texts->merges_txt, file);
      } catch (const TokenizerError& error) {
        throw WeightError(error.what());
      }
    }
    return model;
  });
}

std::optional<TokenizerTexts> read_native_tokenizer(const std::string& file) {
  return as_weight_errors([&] { return read_texts(open_file(file)); });
}

}  // namespace stagecoach
