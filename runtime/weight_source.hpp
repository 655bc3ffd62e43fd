// Where weights come from: one virtual interface over files and generators, and what a model directory holds.
//
// A WeightSource hands out raw rows of one tensor, or raw panels of a matrix that is stored packed, in the dtype they
// are stored in; converting and packing is the backend's. It reads only the bytes asked for, so each rank touches only
// its own tensors. Const calls may run from several threads at once.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/tensor.hpp"
#include "partition/model.hpp"
#include "runtime/tokenizer.hpp"

namespace stagecoach {

// A model that cannot be used: which file, which tensor or field, what is wrong and what would work. Exit status 2.
class WeightError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class WeightSource {
 public:
  virtual ~WeightSource() = default;
  // The dtype `tensor` is stored in.
  virtual DType dtype_of(const TensorSpec& tensor) const = 0;
  // Reads rows [first_row, first_row + rows) of `tensor`, (rows, tensor.cols) in dtype_of(tensor), into `out`.
  virtual void read_rows(const TensorSpec& tensor, std::int64_t first_row, std::int64_t rows,
                         std::span<std::byte> out) const = 0;
  // Whether `tensor` is stored in panels (weight_layout.hpp). Then it has no rows to read, but these: panels
  // [first, first + count) of packed_layout_of(tensor, dtype_of(tensor)).
  virtual bool is_packed(const TensorSpec&) const { return false; }
  virtual void read_panels(const TensorSpec& tensor, std::int64_t first, std::int64_t count,
                           std::span<std::byte> out) const;

  // --- packed matrices used in the file itself, without a copy
  // From now on mapped_panels has them; false where matrices are not packed. Before other threads use the source.
  virtual bool map() { return false; }
  // All panels of `tensor` where they are mapped, for as long as the source lives, for use soon; otherwise nothing.
  // read_panels that is to put panels where they are already leaves them. What was computed from them counts only once
  // check_mapped has passed after it: it throws std::runtime_error when the file was changed or lost.
  virtual std::span<const std::byte> mapped_panels(const TensorSpec&) const { return {}; }
  virtual void check_mapped() const {}

  // Bytes read (files) or made (synthetic) so far.
  virtual std::int64_t bytes_read() const = 0;
  // How messages call `tensor`: "FILE: tensor NAME", with the name that the file has.
  virtual std::string place_of(const TensorSpec& tensor) const { return "tensor " + tensor.name; }
  // The checksum of `tensor`, if it is known. Then whoever reads all of it passes the XXH3-64 of what came (of panels
  // checksum_of_panels) to `verify`, which throws WeightError when that is not what was stored. TensorReader and
  // PackedReader do so.
  virtual std::optional<std::uint64_t> checksum_of(const TensorSpec&) const { return std::nullopt; }
  virtual void verify(const TensorSpec&, std::uint64_t) const {}
};

struct Model {
  std::string name;  // as given by the user
  ModelConfig config;
  DType dtype = DType::kFloat32;  // that of the stored token embedding: the default for --dtype
  std::unique_ptr<WeightSource> weights;
  std::optional<Tokenizer> tokenizer;  // absent when the model has no vocabulary files
};

// The vocabulary takes longer to open than all else together, and only the rank that reads prompts needs it.
enum class ModelParts : std::uint8_t { kAll, kNoTokenizer };

// Throws WeightError when the model's weights cannot become `dtype`: int8 ones stay int8.
void require_convertible(const Model& model, DType dtype);

// `name` is a Hugging Face directory, a native model file (or a directory with one as model.h5 and no config.json), or
// "synthetic:gpt2-xl,n_layer=8,seed=3,dtype=float16".
// Reads the configuration, the tensor headers and the vocabulary, but no weights. Every tensor of the model must be
// there exactly once with its shape, none may be unknown. Throws WeightError.
Model open_model(const std::string& name, ModelParts parts = ModelParts::kAll);

// The tokenizer alone: a directory with vocab.json and merges.txt, or with tokenizer.json, is enough; the two files win
// where all three are there. Throws WeightError when there is none.
Tokenizer open_tokenizer(const std::string& name);

// The tokenizer's files as the model has them, or as texts_of_tokenizer_json makes them of tokenizer.json, unchecked;
// none when it has no tokenizer. Throws WeightError.
std::optional<TokenizerTexts> read_tokenizer_texts(const std::string& name);

}  // namespace stagecoach
