// Tensors that stand in files as plain rows or panels: the list that every file format fills in, its checks against the
// model, and the one WeightSource that reads them.
//
// A format's reader says which tensors there are, where their bytes begin and, if it knows, their checksums; what may
// be missing, double, unknown or of another shape is decided here, the same for all formats. Bytes are read with plain
// positioned reads, by any number of threads, and only those that are asked for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "kernels/tensor.hpp"
#include "partition/model.hpp"
#include "runtime/input_file.hpp"
#include "runtime/weight_source.hpp"

namespace stagecoach {

struct StoredTensor {
  std::string name;            // Hugging Face's; "transformer." may stand before it
  std::string stored_name;     // as the file has it, for messages
  std::string type;            // as the file says it
  std::optional<DType> dtype;  // none: a type that this program does not read
  std::vector<std::int64_t> shape;
  std::int64_t offset = 0;  // from the start of the file
  std::int64_t bytes = 0;
  std::optional<std::uint64_t> xxh3;  // of the bytes
  std::size_t file = 0;               // set by TensorCatalogue::add
};

class TensorCatalogue {
 public:
  // `origin`: the file that says which tensors there are. `types`: names of the dtypes in this format.
  // `configuration`: where the dimensions come from, "config.json".
  TensorCatalogue(std::filesystem::path origin, std::string types, std::string configuration);

  // Says that all matrices (is_matrix) are packed: (panels, in, kPanel), or (panels, bytes of a panel) of int8.
  void set_packed() { packed_ = true; }
  bool packed() const { return packed_; }

  std::size_t add_file(const std::filesystem::path& path);
  // h.N.attn.bias and h.N.attn.masked_bias (masks that old versions stored) are skipped. Throws WeightError when the
  // tensor is there already.
  void add(StoredTensor tensor, std::size_t file);

  // By the name without prefix; null when there is none.
  const StoredTensor* find(const std::string& name) const;
  const std::vector<StoredTensor>& all() const { return tensors_; }
  const InputFile& file_of(const StoredTensor& tensor) const { return files_[tensor.file]; }
  std::size_t files() const { return files_.size(); }
  const InputFile& file(std::size_t index) const { return files_[index]; }
  const std::filesystem::path& origin() const { return origin_; }
  const std::string& types() const { return types_; }
  const std::string& configuration() const { return configuration_; }

 private:
  std::filesystem::path origin_;
  std::string types_;
  std::string configuration_;
  bool packed_ = false;
  std::vector<InputFile> files_;
  std::vector<StoredTensor> tensors_;
  std::unordered_map<std::string, std::size_t> by_name_;
};

// `name` without "transformer.".
std::string_view without_prefix(std::string_view name);
// h.N.attn.bias and h.N.attn.masked_bias: the causal mask and its fill value. `name` is without prefix.
bool is_mask_buffer(std::string_view name);

// Every tensor of tensor_table(config) must be there in its shape, and no other. A tied model may also store
// lm_head.weight: whoever reads rows of wte.weight has the same rows of lm_head.weight compared with them, so opening
// stays cheap and a head that differs is an error rather than ignored. Throws WeightError.
std::unique_ptr<WeightSource> make_stored_source(TensorCatalogue catalogue, const ModelConfig& config);

}  // namespace stagecoach
