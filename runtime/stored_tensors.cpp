#include "runtime/stored_tensors.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <unordered_set>

#include "partition/wording.hpp"
#include "runtime/mapped_file.hpp"
#include "runtime/packed_tensor.hpp"
#include "runtime/row_range.hpp"

namespace stagecoach {
namespace {

constexpr std::string_view kPrefix = "transformer.";
constexpr const char* kHead = "lm_head.weight";

std::string shape_text(const std::vector<std::int64_t>& shape) {
  return fmt::format("({})", fmt::join(shape, ", "));
}

class StoredSource final : public WeightSource {
 public:
  StoredSource(TensorCatalogue catalogue, const ModelConfig& config)
      : catalogue_(std::move(catalogue)), tied_(config.tie_word_embeddings) {
    check_tensors(config);
  }

  DType dtype_of(const TensorSpec& tensor) const override { return *stored_of(tensor).dtype; }

  void read_rows(const TensorSpec& tensor, std::int64_t first_row, std::int64_t rows,
                 std::span<std::byte> out) const override {
    const StoredTensor& stored = stored_of(tensor);
    if (is_packed(tensor)) throw std::invalid_argument(fmt::format("tensor {}: is stored in panels", tensor.name));
    const std::span<std::byte> wanted = row_bytes(tensor, *stored.dtype, first_row, rows, out);
    const std::int64_t offset = rows == 0 ? 0 : first_row * (static_cast<std::int64_t>(wanted.size()) / rows);
    read_tensor(tensor, stored, offset, wanted);
  }

  bool is_packed(const TensorSpec& tensor) const override { return catalogue_.packed() && is_matrix(tensor); }

  void read_panels(const TensorSpec& tensor, std::int64_t first, std::int64_t count,
                   std::span<std::byte> out) const override {
    if (!is_packed(tensor)) return WeightSource::read_panels(tensor, first, count, out);
    const StoredTensor& stored = stored_of(tensor);
    const PackedLayout layout = packed_layout_of(tensor, *stored.dtype);
    read_tensor(tensor, stored, first * layout.panel_bytes(),
                range_bytes(tensor, "panels", layout.panels(), layout.panel_bytes(), first, count, out));
  }

  bool map() override {
    if (!catalogue_.packed()) return false;
    for (std::size_t i = mapped_.size(); i < catalogue_.files(); ++i) {
      mapped_.push_back(std::make_unique<MappedFile>(catalogue_.file(i)));
    }
    return true;
  }

  std::span<const std::byte> mapped_panels(const TensorSpec& tensor) const override {
    if (mapped_.empty() || !is_packed(tensor)) return {};
    const StoredTensor& stored = stored_of(tensor);
    mapped_[stored.file]->expect(stored.offset, stored.bytes);
    return mapped_[stored.file]->bytes().subspan(static_cast<std::size_t>(stored.offset),
                                                 static_cast<std::size_t>(stored.bytes));
  }

  void check_mapped() const override {
    for (const auto& file : mapped_) file->check();
  }

  std::int64_t bytes_read() const override { return bytes_read_.load(std::memory_order_relaxed); }

  std::string place_of(const TensorSpec& tensor) const override { return place_of(stored_of(tensor)); }

  std::optional<std::uint64_t> checksum_of(const TensorSpec& tensor) const override { return stored_of(tensor).xxh3; }

  void verify(const TensorSpec& tensor, std::uint64_t xxh3) const override {
    const StoredTensor& stored = stored_of(tensor);
    if (!stored.xxh3 || *stored.xxh3 == xxh3) return;
    fail(stored, "its bytes do not match their checksum; the file is damaged, convert it again");
  }

 private:
  const StoredTensor& stored_of(const TensorSpec& tensor) const {
    const StoredTensor* stored = catalogue_.find(tensor.name);
    if (stored == nullptr) {
      throw std::invalid_argument(fmt::format("tensor {}: is not one of this model", tensor.name));
    }
    return *stored;
  }

  void read_tensor(const TensorSpec& tensor, const StoredTensor& stored, std::int64_t offset,
                   std::span<std::byte> wanted) const {
    read_at(stored, offset, wanted);
    if (!tied_ || tensor.role != TensorRole::kTokenEmbedding) return;
    if (const StoredTensor* head = catalogue_.find(kHead)) compare_head(*head, offset, wanted);
  }

  void read_at(const StoredTensor& stored, std::int64_t offset, std::span<std::byte> out) const {
    const MappedFile* mapped = mapped_.empty() ? nullptr : mapped_[stored.file].get();
    if (mapped == nullptr || out.data() != mapped->bytes().data() + stored.offset + offset) {
      catalogue_.file_of(stored).read(stored.offset + offset, out, fmt::format("tensor {}", stored.stored_name));
    }
    bytes_read_.fetch_add(static_cast<std::int64_t>(out.size()), std::memory_order_relaxed);
  }

  void compare_head(const StoredTensor& head, std::int64_t offset, std::span<const std::byte> embedding) const {
    std::vector<std::byte> piece(std::min<std::size_t>(embedding.size(), std::size_t{1} << 20));
    for (std::size_t done = 0; done < embedding.size(); done += piece.size()) {
      piece.resize(std::min(piece.size(), embedding.size() - done));
      read_at(head, offset + static_cast<std::int64_t>(done), piece);
      if (std::memcmp(piece.data(), embedding.data() + done, piece.size()) != 0) fail_untied(head, "its values differ");
    }
  }

  std::string place_of(const StoredTensor& stored) const {
    return fmt::format("{}: tensor {}", catalogue_.file_of(stored).path().string(), printable(stored.stored_name));
  }
  [[noreturn]] void fail(const StoredTensor& stored, std::string_view what) const {
    throw WeightError(fmt::format("{}: {}", place_of(stored), what));
  }

  [[noreturn]] void fail_untied(const StoredTensor& head, std::string_view what) const {
    fail(head, fmt::format("{} ties it to wte.weight, but {}; set tie_word_embeddings to false to use it, or remove "
                           "it from the file",
                           catalogue_.configuration(), what));
  }

  // All tensors of the model are there, and nothing else.
  void check_tensors(const ModelConfig& config) const {
    std::size_t known = 0;
    const std::vector<TensorSpec> table = tensor_table(config);
    for (const TensorSpec& spec : table) {
      const StoredTensor* stored = catalogue_.find(spec.name);
      if (stored == nullptr) continue;
      ++known;
      check_one(spec, *stored);
    }
    const StoredTensor* head = config.tie_word_embeddings ? catalogue_.find(kHead) : nullptr;
    if (head != nullptr) {
      ++known;
      const StoredTensor* embedding = catalogue_.find("wte.weight");
      if (embedding != nullptr && (embedding->type != head->type || embedding->shape != head->shape)) {
        fail_untied(*head, fmt::format("it is {} {} and wte.weight {} {}", head->type, shape_text(head->shape),
                                       embedding->type, shape_text(embedding->shape)));
      }
    }
    if (known < catalogue_.all().size()) fail_unknown(table, head != nullptr);
    for (const TensorSpec& spec : table) {
      if (catalogue_.find(spec.name) == nullptr) fail_missing(spec, table.size() - known + (head != nullptr ? 1 : 0));
    }
    check_apart();
  }

  // No byte belongs to two tensors: an offset that damage has moved would pass otherwise.
  void check_apart() const {
    std::vector<const StoredTensor*> sorted;
    for (const StoredTensor& stored : catalogue_.all()) sorted.push_back(&stored);
    std::ranges::sort(sorted, {}, [](const StoredTensor* t) { return std::pair(t->file, t->offset); });
    for (std::size_t i = 1; i < sorted.size(); ++i) {
      const StoredTensor& before = *sorted[i - 1];
      if (before.file != sorted[i]->file || sorted[i]->offset - before.offset >= before.bytes) continue;
      fail(*sorted[i], fmt::format("shares bytes with tensor {}; the file is damaged", printable(before.stored_name)));
    }
  }

  void check_one(const TensorSpec& spec, const StoredTensor& stored) const {
    const bool packed = is_packed(spec);
    if (!stored.dtype || (*stored.dtype == DType::kInt8 && !packed)) {
      fail(stored, fmt::format("dtype {}, expected {}", stored.type, catalogue_.types()));
    }
    const std::vector<std::int64_t> expected = stored_shape(spec, *stored.dtype, packed);
    if (stored.shape != expected) {
      fail(stored, fmt::format("shape {}, expected {}", shape_text(stored.shape), shape_text(expected)));
    }
    const std::int64_t bytes =
        packed ? packed_layout_of(spec, *stored.dtype).bytes() : spec.elements() * size_of(*stored.dtype);
    if (stored.bytes != bytes) {
      fail(stored, fmt::format("has {} bytes of data, but its shape and dtype make {}", stored.bytes, bytes));
    }
    const std::int64_t file_bytes = catalogue_.file_of(stored).bytes();
    if (stored.offset < 0 || stored.offset > file_bytes || stored.bytes > file_bytes - stored.offset) {
      fail(stored, fmt::format("ends at byte {} of the file, which has only {}; is it complete?",
                               stored.offset + stored.bytes, file_bytes));
    }
  }

  [[noreturn]] void fail_unknown(const std::vector<TensorSpec>& table, bool head_allowed) const {
    std::unordered_set<std::string_view> names;
    for (const TensorSpec& spec : table) names.insert(spec.name);
    const StoredTensor* first = nullptr;  // in the order of the names, so that every rank says the same
    std::size_t count = 0;
    for (const StoredTensor& stored : catalogue_.all()) {
      if (names.contains(stored.name) || (head_allowed && stored.name == kHead)) continue;
      ++count;
      if (first == nullptr || stored.stored_name < first->stored_name) first = &stored;
    }
    fail(*first, fmt::format("is no tensor of the GPT-2 model that {} describes{}", catalogue_.configuration(),
                             count > 1 ? fmt::format(" (and {} more)", count - 1) : ""));
  }

  [[noreturn]] void fail_missing(const TensorSpec& spec, std::size_t count) const {
    const std::string why =
        spec.role == TensorRole::kHeadWeight
            ? fmt::format("; {} has tie_word_embeddings false, so the model needs a head of its own",
                          catalogue_.configuration())
            : "";
    throw WeightError(fmt::format("{}: tensor {}: is missing{}{}", catalogue_.origin().string(), spec.name,
                                  count > 1 ? fmt::format(" (and {} more)", count - 1) : "", why));
  }

  TensorCatalogue catalogue_;
  bool tied_;
  std::vector<std::unique_ptr<MappedFile>> mapped_;  // of the catalogue's files, once `map` was called
  mutable std::atomic<std::int64_t> bytes_read_{0};
};

}  // namespace

std::string_view without_prefix(std::string_view name) {
  if (name.starts_with(kPrefix)) name.remove_prefix(kPrefix.size());
  return name;
}

bool is_mask_buffer(std::string_view name) {
  if (!name.starts_with("h.")) return false;
  name.remove_prefix(2);
  const std::size_t digits = std::min(name.find_first_not_of("0123456789"), name.size());
  name.remove_prefix(digits);
  return digits > 0 && (name == ".attn.bias" || name == ".attn.masked_bias");
}

TensorCatalogue::TensorCatalogue(std::filesystem::path origin, std::string types, std::string configuration)
    : origin_(std::move(origin)), types_(std::move(types)), configuration_(std::move(configuration)) {}

std::size_t TensorCatalogue::add_file(const std::filesystem::path& path) {
  files_.emplace_back(path);
  return files_.size() - 1;
}

void TensorCatalogue::add(StoredTensor tensor, std::size_t file) {
  tensor.name = without_prefix(tensor.name);
  tensor.file = file;
  if (is_mask_buffer(tensor.name)) return;
  const auto [place, is_new] = by_name_.try_emplace(tensor.name, tensors_.size());
  if (!is_new) {
    const StoredTensor& other = tensors_[place->second];
    throw WeightError(fmt::format("{}: tensor {}: is there twice, as {} in {} and as {} here; keep one of them",
                                  files_[file].path().string(), printable(tensor.name), printable(other.stored_name),
                                  file_of(other).path().filename().string(), printable(tensor.stored_name)));
  }
  tensors_.push_back(std::move(tensor));
}

const StoredTensor* TensorCatalogue::find(const std::string& name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : &tensors_[found->second];
}

std::unique_ptr<WeightSource> make_stored_source(TensorCatalogue catalogue, const ModelConfig& config) {
  return std::make_unique<StoredSource>(std::move(catalogue), config);
}

}  // namespace stagecoach
