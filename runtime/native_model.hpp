// Native model files: one self-contained HDF5 file, as `stagecoach convert` writes it.
//
//   /                        attributes format = "stagecoach-model", format_version, layout (version 2), every field of
//                            ModelConfig under its name in config.json (numbers int64 or float64, flags as h5py's bool,
//                            text UTF-8), and contents, see below
//   /embedding/wte.weight    (vocab_size, n_embd)     one dataset per tensor, named as in Hugging Face without "h.N.":
//   /embedding/wpe.weight    (n_positions, n_embd)    float32, float16 or bfloat16 (8 exponent and 7 fraction bits),
//   /blocks/0/ln_1.weight    (n_embd)                 little-endian, row-major, contiguous, from a multiple of 4096
//   /blocks/0/...                                     bytes on, vectors with one dimension; attribute xxh3 (uint64):
//   /final/ln_f.weight, /final/ln_f.bias              XXH3-64 of its bytes
//   /final/lm_head.weight    (vocab_size, n_embd)     only when tie_word_embeddings is false
//   /tokenizer/vocab.json, /tokenizer/merges.txt      uint8: the two files as they were, also with xxh3; both or
//                                                     neither
//
// Version 1 is that. In version 2 the attribute layout names how all matrices lie (vectors and wpe.weight stay rows):
// "panels-64", the packed layout of kernels/weight_layout.hpp, with the shape (panels, inputs, 64), or (panels, bytes
// of a panel) of int8; element (p, k, c) is column 64 p + c of the matrix (inputs, outputs), which for wte.weight and
// lm_head.weight is the tensor transposed. Their xxh3 is checksum_of_panels (packed_tensor.hpp).
//
// `contents` (uint64) is the XXH3-64 of lines that end in "\n": "stagecoach-model VERSION"; in version 2
// "layout panels-64"; "NAME VALUE" for each field in the order of config_fields (true or false; the layer norm's
// epsilon as the 16 hexadecimal digits of its bits); and "PATH TYPE (SHAPE, ...) XXH3" for each dataset in the order of
// its path's bytes, XXH3 as 16 hexadecimal digits. It is zero until everything else is written, so an unfinished or
// changed file is refused.
//
// All metadata stands at the front with HDF5's own checksums. Each rank reads only its own tensors, straight from their
// offsets, and verifies their checksums on the way.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "kernels/tensor.hpp"
#include "partition/model.hpp"
#include "runtime/weight_source.hpp"

namespace stagecoach {

constexpr const char* kNativeFileInDirectory = "model.h5";

// Checks everything but the tensors' bytes. Throws WeightError, also for HDF5 files of other kinds.
Model open_native_model(const std::string& file, ModelParts parts = ModelParts::kAll);
std::optional<TokenizerTexts> read_native_tokenizer(const std::string& file);

enum class NativeLayout : std::uint8_t { kRows, kPanels };

struct NativeOptions {
  std::optional<DType> dtype;  // as stored; beside int8 matrices all else is float32
  NativeLayout layout = NativeLayout::kPanels;
};

// Writes `model` with its tensors as `dtype`, rounded to nearest even (int8: as Backend::load_rows does). The same
// model gives the same bytes. `progress(done, total)` hears bytes of the source. Throws WeightError (a value that is
// not finite, or not in `dtype`; the tensor is named) and OutputError; the file appears under its name only when it is
// complete and durable.
void write_native_model(const Model& model, const std::optional<TokenizerTexts>& tokenizer,
                        const NativeOptions& options, const std::string& file,
                        const std::function<void(std::int64_t, std::int64_t)>& progress);

// "/blocks/3/attn.c_attn.weight" for h.3.attn.c_attn.weight.
std::string native_path(const TensorSpec& tensor);

}  // namespace stagecoach
