#include "runtime/safetensors.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>
#include <unordered_map>

#include "runtime/json.hpp"
#include "runtime/quote.hpp"
#include "runtime/row_range.hpp"

namespace stagecoach {
namespace {

constexpr std::string_view kPrefix = "transformer.";
constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";
constexpr const char* kHead = "lm_head.weight";

struct Stored {
  std::size_t file = 0;  // index into the list of files
  SafetensorsEntry entry;
};
using StoredByName = std::unordered_map<std::string, Stored>;  // by the name without prefix

std::string_view without_prefix(std::string_view name) {
  if (name.starts_with(kPrefix)) name.remove_prefix(kPrefix.size());
  return name;
}

// h.N.attn.bias and h.N.attn.masked_bias: the causal mask and its fill value.
bool is_mask_buffer(std::string_view name) {
  if (!name.starts_with("h.")) return false;
  name.remove_prefix(2);
  const std::size_t digits = std::min(name.find_first_not_of("0123456789"), name.size());
  name.remove_prefix(digits);
  return digits > 0 && (name == ".attn.bias" || name == ".attn.masked_bias");
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  return fmt::format("({})", fmt::join(shape, ", "));
}

std::optional<DType> dtype_of_stored(std::string_view name) {
  if (name == "F32") return DType::kFloat32;
  if (name == "F16") return DType::kFloat16;
  if (name == "BF16") return DType::kBFloat16;
  return std::nullopt;
}

// The files of a checkpoint and which tensor stands where.
class Catalogue {
 public:
  // `origin`: the file that says which tensors there are.
  explicit Catalogue(std::filesystem::path origin) : origin_(std::move(origin)) {}

  // Every tensor of one file but the mask buffers.
  void add_file(const std::filesystem::path& path) {
    files_.emplace_back(path);
    const std::size_t index = files_.size() - 1;
    for (SafetensorsEntry& entry : read_safetensors_header(files_.back())) {
      const std::string name(without_prefix(entry.name));
      if (is_mask_buffer(name)) continue;
      const auto [place, is_new] = stored_.try_emplace(name, Stored{index, std::move(entry)});
      if (!is_new) {
        const Stored& other = place->second;
        throw WeightError(fmt::format("{}: tensor {}: is there twice, as {} in {} and as {} here; keep one of them",
                                      path.string(), printable(name), printable(other.entry.name),
                                      files_[other.file].path().filename().string(), printable(entry.name)));
      }
    }
  }
  const Stored* find(const std::string& name) const {
    const auto found = stored_.find(name);
    return found == stored_.end() ? nullptr : &found->second;
  }
  const InputFile& file_of(const Stored& stored) const { return files_[stored.file]; }
  const StoredByName& all() const { return stored_; }
  const std::filesystem::path& origin() const { return origin_; }

 private:
  std::filesystem::path origin_;
  std::vector<InputFile> files_;
  StoredByName stored_;
};

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

Catalogue open_shards(const std::filesystem::path& directory) {
  const std::filesystem::path index_path = directory / kIndexFile;
  const auto weight_map = read_weight_map(index_path);
  std::vector<std::string> shards;
  for (const auto& [tensor, shard] : weight_map) shards.push_back(shard);
  std::sort(shards.begin(), shards.end());
  shards.erase(std::unique(shards.begin(), shards.end()), shards.end());
  Catalogue catalogue(index_path);
  for (const std::string& shard : shards) {
    if (!std::filesystem::exists(directory / shard)) {
      throw WeightError(
          fmt::format("{}: the shard {} is missing from the directory", index_path.string(), printable(shard)));
    }
    catalogue.add_file(directory / shard);
  }
  // Both ways: what the index promises is there, and nothing is there that it does not know.
  std::unordered_map<std::string_view, std::string_view> promised;
  for (const auto& [tensor, shard] : weight_map) {
    promised.emplace(tensor, shard);
    const std::string name(without_prefix(tensor));
    if (is_mask_buffer(name)) continue;
    const Stored* stored = catalogue.find(name);
    if (stored == nullptr || stored->entry.name != tensor || catalogue.file_of(*stored).path().filename() != shard) {
      throw WeightError(fmt::format("{}: tensor {}: is not in {}, where the index says it is", index_path.string(),
                                    printable(tensor), printable(shard)));
    }
  }
  for (const auto& [name, stored] : catalogue.all()) {
    if (!promised.contains(stored.entry.name)) {
      throw WeightError(fmt::format("{}: tensor {}: is in {}, but not in the index", index_path.string(),
                                    printable(stored.entry.name),
                                    catalogue.file_of(stored).path().filename().string()));
    }
  }
  return catalogue;
}

Catalogue open_catalogue(const std::filesystem::path& directory) {
  if (std::filesystem::exists(directory / kSingleFile)) {
    Catalogue catalogue(directory / kSingleFile);
    catalogue.add_file(directory / kSingleFile);
    return catalogue;
  }
  if (std::filesystem::exists(directory / kIndexFile)) return open_shards(directory);
  for (const char* other : {"pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack"}) {
    if (std::filesystem::exists(directory / other)) {
      throw WeightError(
          fmt::format("{}: has {} but no {}; this version reads safetensors: load the model with Hugging "
                      "Face transformers and save it with save_pretrained(..., safe_serialization=True)",
                      directory.string(), other, kSingleFile));
    }
  }
  throw WeightError(fmt::format("{}: has no weights; expected {} or {}", directory.string(), kSingleFile, kIndexFile));
}

class SafetensorsSource final : public WeightSource {
 public:
  SafetensorsSource(Catalogue catalogue, const ModelConfig& config)
      : catalogue_(std::move(catalogue)), tied_(config.tie_word_embeddings) {
    check_tensors(config);
  }

  DType dtype_of(const TensorSpec& tensor) const override { return *dtype_of_stored(stored_of(tensor).entry.dtype); }

  void read_rows(const TensorSpec& tensor, std::int64_t first_row, std::int64_t rows,
                 std::span<std::byte> out) const override {
    const Stored& stored = stored_of(tensor);
    const std::span<std::byte> wanted = row_bytes(tensor, dtype_of(tensor), first_row, rows, out);
    const std::int64_t offset = rows == 0 ? 0 : first_row * (static_cast<std::int64_t>(wanted.size()) / rows);
    read_at(stored, offset, wanted);
    if (tied_ && tensor.role == TensorRole::kTokenEmbedding) {
      if (const Stored* head = catalogue_.find(kHead)) compare_head(*head, offset, wanted);
    }
  }

  std::int64_t bytes_read() const override { return bytes_read_.load(std::memory_order_relaxed); }

 private:
  const Stored& stored_of(const TensorSpec& tensor) const {
    const Stored* stored = catalogue_.find(tensor.name);
    if (stored == nullptr) {
      throw std::invalid_argument(fmt::format("tensor {}: is not one of this model", tensor.name));
    }
    return *stored;
  }

  void read_at(const Stored& stored, std::int64_t offset, std::span<std::byte> out) const {
    catalogue_.file_of(stored).read(stored.entry.offset + offset, out, fmt::format("tensor {}", stored.entry.name));
    bytes_read_.fetch_add(static_cast<std::int64_t>(out.size()), std::memory_order_relaxed);
  }

  void compare_head(const Stored& head, std::int64_t offset, std::span<const std::byte> embedding) const {
    std::vector<std::byte> piece(std::min<std::size_t>(embedding.size(), std::size_t{1} << 20));
    for (std::size_t done = 0; done < embedding.size(); done += piece.size()) {
      piece.resize(std::min(piece.size(), embedding.size() - done));
      read_at(head, offset + static_cast<std::int64_t>(done), piece);
      if (std::memcmp(piece.data(), embedding.data() + done, piece.size()) != 0) fail_untied(head, "its values differ");
    }
  }

  [[noreturn]] void fail_untied(const Stored& head, std::string_view what) const {
    throw WeightError(
        fmt::format("{}: tensor {}: config.json ties it to wte.weight, but {}; set tie_word_embeddings to "
                    "false to use it, or remove it from the file",
                    catalogue_.file_of(head).path().string(), head.entry.name, what));
  }

  // All tensors of the model are there, and nothing else.
  void check_tensors(const ModelConfig& config) const {
    std::size_t known = 0;
    std::vector<TensorSpec> table = tensor_table(config);
    for (const TensorSpec& spec : table) {
      const Stored* stored = catalogue_.find(spec.name);
      if (stored == nullptr) continue;
      ++known;
      check_one(spec, *stored);
    }
    const Stored* head = config.tie_word_embeddings ? catalogue_.find(kHead) : nullptr;
    if (head != nullptr) {
      ++known;
      const Stored* embedding = catalogue_.find("wte.weight");
      if (embedding != nullptr &&
          (embedding->entry.dtype != head->entry.dtype || embedding->entry.shape != head->entry.shape)) {
        fail_untied(*head,
                    fmt::format("it is {} {} and wte.weight {} {}", head->entry.dtype, shape_text(head->entry.shape),
                                embedding->entry.dtype, shape_text(embedding->entry.shape)));
      }
    }
    if (known < catalogue_.all().size()) fail_unknown(table, head != nullptr);
    for (const TensorSpec& spec : table) {
      if (catalogue_.find(spec.name) == nullptr) fail_missing(spec, table.size() - known + (head != nullptr ? 1 : 0));
    }
  }

  void check_one(const TensorSpec& spec, const Stored& stored) const {
    const auto fail = [&](std::string_view what) {
      throw WeightError(
          fmt::format("{}: tensor {}: {}", catalogue_.file_of(stored).path().string(), stored.entry.name, what));
    };
    const std::vector<std::int64_t> expected =
        spec.is_vector ? std::vector<std::int64_t>{spec.cols} : std::vector<std::int64_t>{spec.rows, spec.cols};
    if (stored.entry.shape != expected) {
      fail(fmt::format("shape {}, expected {}", shape_text(stored.entry.shape), shape_text(expected)));
    }
    if (!dtype_of_stored(stored.entry.dtype)) {
      fail(fmt::format("dtype {}, expected F32, F16 or BF16", stored.entry.dtype));
    }
  }

  [[noreturn]] void fail_unknown(const std::vector<TensorSpec>& table, bool head_allowed) const {
    std::unordered_map<std::string_view, bool> names;
    for (const TensorSpec& spec : table) names.emplace(spec.name, true);
    const Stored* first = nullptr;  // in the order of the names, so that every rank says the same
    std::size_t count = 0;
    for (const auto& [name, stored] : catalogue_.all()) {
      if (names.contains(name) || (head_allowed && name == kHead)) continue;
      ++count;
      if (first == nullptr || stored.entry.name < first->entry.name) first = &stored;
    }
    throw WeightError(fmt::format("{}: tensor {}: is no tensor of the GPT-2 model that config.json describes{}",
                                  catalogue_.file_of(*first).path().string(), printable(first->entry.name),
                                  count > 1 ? fmt::format(" (and {} more)", count - 1) : ""));
  }

  [[noreturn]] void fail_missing(const TensorSpec& spec, std::size_t count) const {
    const char* why = spec.role == TensorRole::kHeadWeight
                          ? "; config.json has tie_word_embeddings false, so the model needs a head of its own"
                          : "";
    throw WeightError(fmt::format("{}: tensor {}: is missing{}{}", catalogue_.origin().string(), spec.name,
                                  count > 1 ? fmt::format(" (and {} more)", count - 1) : "", why));
  }

  Catalogue catalogue_;
  bool tied_;
  mutable std::atomic<std::int64_t> bytes_read_{0};
};

}  // namespace

std::unique_ptr<WeightSource> open_safetensors(const std::filesystem::path& directory, const ModelConfig& config) {
  return std::make_unique<SafetensorsSource>(open_catalogue(directory), config);
}

}  // namespace stagecoach
