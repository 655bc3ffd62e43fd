#include "runtime/native_model.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <iterator>
#include <map>
#include <utility>
#include <vector>

#include "kernels/convert.hpp"
#include "runtime/checksum.hpp"
#include "runtime/h5_inventory.hpp"
#include "runtime/hdf5_file.hpp"
#include "runtime/hdf5_tensors.hpp"
#include "runtime/model_config.hpp"
#include "runtime/output_file.hpp"
#include "runtime/quote.hpp"
#include "runtime/results.hpp"
#include "runtime/stored_tensors.hpp"
#include "runtime/tensor_pieces.hpp"

namespace stagecoach {
namespace {

constexpr const char* kFormat = "stagecoach-model";
constexpr std::int64_t kVersion = 1;
constexpr const char* kChecksum = "xxh3";
constexpr const char* kContents = "contents";
constexpr const char* kVocab = "/tokenizer/vocab.json";
constexpr const char* kMerges = "/tokenizer/merges.txt";
constexpr std::int64_t kMaxTokenizerBytes = std::int64_t{1} << 30;

[[noreturn]] void fail(const std::string& file, std::string_view what) {
  throw WeightError(fmt::format("{}: {}", file, what));
}

// Path, type, shape and checksum of every dataset, in the order of the paths.
using DatasetLines = std::map<std::string, std::string>;

std::string line_of(std::string_view type, const std::vector<std::int64_t>& shape, std::uint64_t xxh3) {
  return fmt::format("{} ({}) {:016x}", type, fmt::join(shape, ", "), xxh3);
}

std::uint64_t contents_of(const Json::Object& fields, const DatasetLines& datasets) {
  std::string text = fmt::format("{} {}\n", kFormat, kVersion);
  for (const auto& [name, value] : fields) {
    std::string shown;
    if (const std::int64_t* number = value.integer()) shown = fmt::format("{}", *number);
    if (const bool* flag = value.boolean()) shown = *flag ? "true" : "false";
    if (const double* real = value.real()) shown = fmt::format("{:016x}", std::bit_cast<std::uint64_t>(*real));
    if (const std::string* word = value.string()) shown = *word;
    text += fmt::format("{} {}\n", name, shown);
  }
  for (const auto& [path, line] : datasets) text += fmt::format("{} {}\n", path, line);
  return xxh3_of(std::as_bytes(std::span(text)));
}

// ---- reading ----

Json json_of(const H5Value& value) {
  if (const std::uint64_t* number = std::get_if<std::uint64_t>(&value)) {
    return *number <= INT64_MAX ? Json(static_cast<std::int64_t>(*number)) : Json(static_cast<double>(*number));
  }
  if (const bool* flag = std::get_if<bool>(&value)) return Json(*flag);
  if (const std::int64_t* number = std::get_if<std::int64_t>(&value)) return Json(*number);
  if (const double* number = std::get_if<double>(&value)) return Json(*number);
  return Json(std::get<std::string>(value));
}

void check_kind(const H5Inventory& inventory, const std::string& file) {
  const std::optional<H5Value> format = inventory.attribute("/", "format");
  if (!format && inventory.attribute("/", "keras_version")) {
    fail(file, "is a Keras checkpoint; give the directory that holds it and its config.json");
  }
  if (!format || *format != H5Value(std::string(kFormat))) {
    fail(file, "is an HDF5 file, but no model of stagecoach convert (a tf_model.h5 is given by its directory)");
  }
  const std::optional<H5Value> version = inventory.attribute("/", "format_version");
  if (!version || *version != H5Value(kVersion)) {
    const Json shown = version ? json_of(*version) : Json();
    fail(file, fmt::format("has format_version {}, but this program reads version {}; convert the model again",
                           shown.integer() != nullptr ? fmt::format("{}", *shown.integer()) : "missing or no number",
                           kVersion));
  }
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
  std::vector<std::string> names = {"format", "format_version", "keras_version", kContents};
  for (const auto& [name, value] : config_fields(ModelConfig())) names.push_back(name);
  return names;
}

OpenFile open_file(const std::string& file) {
  H5Inventory inventory = inventory_of(file, names_of_root_attributes(), {kChecksum});
  OpenFile result{file, {}, {}, {}};
  check_kind(inventory, file);
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
  if (*contents != H5Value(contents_of(config_fields(result.config), lines))) fail(file, kUnfinished);
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

// ---- writing ----

class Conversion {
 public:
  Conversion(const Model& model, std::optional<DType> dtype) : model_(model), dtype_(dtype), reader_(*model.weights) {
    for (const TensorSpec& spec : tensor_table(model.config)) total_ += spec.elements() * size_of(source_dtype(spec));
  }

  void run(const std::optional<TokenizerTexts>& tokenizer, const std::string& file,
           const std::function<void(std::int64_t, std::int64_t)>& progress) {
    H5Writer writer(file);
    const std::vector<TensorSpec> table = tensor_table(model_.config);
    const Json::Object fields = config_fields(model_.config);
    declare(writer, fields, table, tokenizer);
    writer.begin_data();
    if (tokenizer) {
      write_text(writer, kVocab, tokenizer->vocab_json);
      write_text(writer, kMerges, tokenizer->merges_txt);
    }
    for (const TensorSpec& spec : table) write_tensor(writer, spec, progress);
    writer.replace("/", kContents, contents_of(fields, lines_));
    writer.close();
  }

 private:
  DType source_dtype(const TensorSpec& spec) const { return model_.weights->dtype_of(spec); }
  DType result_dtype(const TensorSpec& spec) const { return dtype_.value_or(source_dtype(spec)); }
  static std::vector<std::int64_t> shape_of(const TensorSpec& spec) {
    return spec.is_vector ? std::vector<std::int64_t>{spec.cols} : std::vector<std::int64_t>{spec.rows, spec.cols};
  }

  void declare(H5Writer& writer, const Json::Object& fields, const std::vector<TensorSpec>& table,
               const std::optional<TokenizerTexts>& tokenizer) const {
    writer.attribute("/", "format", std::string(kFormat));
    writer.attribute("/", "format_version", kVersion);
    writer.attribute("/", kContents, std::uint64_t{0});
    for (const auto& [name, value] : fields) {
      if (const std::int64_t* number = value.integer()) writer.attribute("/", name, *number);
      if (const bool* flag = value.boolean()) writer.attribute("/", name, *flag);
      if (const double* real = value.real()) writer.attribute("/", name, *real);
      if (const std::string* word = value.string()) writer.attribute("/", name, *word);
    }
    const auto dataset = [&](const std::string& path, H5Element element, const std::vector<std::int64_t>& shape) {
      writer.dataset(path, element, shape);
      writer.attribute(path, kChecksum, std::uint64_t{0});
    };
    if (tokenizer) {
      dataset(kVocab, H5Element::kUInt8, {static_cast<std::int64_t>(tokenizer->vocab_json.size())});
      dataset(kMerges, H5Element::kUInt8, {static_cast<std::int64_t>(tokenizer->merges_txt.size())});
    }
    for (const TensorSpec& spec : table) dataset(native_path(spec), element_of(result_dtype(spec)), shape_of(spec));
  }

  void finish_dataset(H5Writer& writer, const std::string& path, std::string line, std::uint64_t xxh3) {
    writer.replace(path, kChecksum, xxh3);
    lines_.emplace(path, std::move(line));
  }

  void write_text(H5Writer& writer, const std::string& path, const std::string& text) {
    const auto bytes = std::as_bytes(std::span(text));
    writer.write(path, 0, bytes);
    const std::uint64_t xxh3 = xxh3_of(bytes);
    finish_dataset(writer, path, line_of("uint8", {static_cast<std::int64_t>(text.size())}, xxh3), xxh3);
  }

  void write_tensor(H5Writer& writer, const TensorSpec& spec,
                    const std::function<void(std::int64_t, std::int64_t)>& progress) {
    const std::string path = native_path(spec);
    const DType dtype = result_dtype(spec);
    Xxh3 hash;
    reader_.read_in_pieces(spec, dtype, [&](std::int64_t first_row, Tensor piece) {
      const std::span<const std::byte> bytes = converted(piece, dtype);
      hash.update(bytes);
      writer.write(path, first_row, bytes);
      done_ += piece.bytes();
      if (progress) progress(done_, total_);
    });
    finish_dataset(writer, path, line_of(name_of(dtype), shape_of(spec), hash.value()), hash.value());
  }

  // The piece as `dtype`, valid until the next call.
  std::span<const std::byte> converted(Tensor piece, DType dtype) {
    const std::int64_t count = piece.rows * piece.cols;
    if (piece.dtype == dtype)
      return {static_cast<const std::byte*>(piece.data), static_cast<std::size_t>(piece.bytes())};
    converted_.resize(static_cast<std::size_t>(count * size_of(dtype)));
    convert_elements(piece.data, piece.dtype, converted_.data(), dtype, count);
    return converted_;
  }

  const Model& model_;
  std::optional<DType> dtype_;
  TensorReader reader_;
  DatasetLines lines_;
  std::vector<std::byte> converted_;
  std::int64_t done_ = 0;
  std::int64_t total_ = 0;
};

}  // namespace

std::string native_path(const TensorSpec& tensor) {
  switch (tensor.place) {
    case TensorPlace::kEmbedding:
      return "/embedding/" + tensor.name;
    case TensorPlace::kBlock:
      return fmt::format("/blocks/{}/{}", tensor.block, tensor.name.substr(tensor.name.find('.', 2) + 1));
    case TensorPlace::kFinal:
      return "/final/" + tensor.name;
  }
  return tensor.name;
}

Model open_native_model(const std::string& file) {
  return as_weight_errors([&] {
    const OpenFile open = open_file(file);
    TensorCatalogue catalogue(file, kH5TensorTypes, "its configuration");
    const std::size_t index = catalogue.add_file(file);
    for (const auto& [dataset, xxh3] : open.tensors) {
      StoredTensor tensor = stored_tensor(dataset, name_of_path(dataset.path), file);
      tensor.xxh3 = xxh3;
      catalogue.add(std::move(tensor), index);
    }
    Model model;
    model.name = file;
    model.config = open.config;
    model.weights = make_stored_source(std::move(catalogue), open.config);
    model.dtype = model.weights->dtype_of(tensor_table(open.config).front());
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

void write_native_model(const Model& model, const std::optional<TokenizerTexts>& tokenizer, std::optional<DType> dtype,
                        const std::string& file, const std::function<void(std::int64_t, std::int64_t)>& progress) {
  OutputFile output(file);
  try {
    Conversion(model, dtype).run(tokenizer, output.partial_path(), progress);
  } catch (const Hdf5Error& error) {
    throw OutputError(error.what());
  }
  output.commit();
}

}  // namespace stagecoach
