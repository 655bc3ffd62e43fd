// Keras checkpoints of Hugging Face's TensorFlow classes: tf_model.h5 beside config.json.
//
// Datasets stand under /transformer/tfgp_t2lm_head_model/transformer/ (the middle part changes with class and version,
// so what counts is what follows the last "/transformer/"): wte/weight:0 (newer: wte/embeddings:0), wpe/embeddings:0,
// h_._0/ln_1/gamma:0 and beta:0, h_._0/attn/c_attn/weight:0 (in, 3 in) and bias:0 (1, 3 in), ..., ln_f/gamma:0. The LM
// head is always tied. Only the list of datasets comes from the HDF5 library; weights are read from where they stand.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "partition/model.hpp"
#include "runtime/weight_source.hpp"

namespace stagecoach {

constexpr const char* kKerasFile = "tf_model.h5";

// Throws WeightError; see make_stored_source for what is checked.
std::unique_ptr<WeightSource> open_keras_h5(const std::filesystem::path& file, const ModelConfig& config);

// "h.0.attn.c_attn.weight" for "/transformer/x/transformer/h_._0/attn/c_attn/weight:0".
std::string name_of_keras_path(const std::string& path);

}  // namespace stagecoach
