// config.json of a Hugging Face GPT-2 model as a ModelConfig.
//
// Honours every field that changes the arithmetic of inference and refuses values that this program does not
// have; fields that only matter for training or for other programs are ignored. Absent fields have
// GPT2Config's defaults. Reads no files.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "partition/model.hpp"
#include "runtime/json.hpp"

namespace stagecoach {

// `file` only names the origin. Throws WeightError "FILE: field: what; what would work".
//
// eos_token_id: null, an empty list, -1 or an id outside the vocabulary (it cannot be generated) mean none,
// -1 in the result. A list must hold one id, since generation ends at one.
ModelConfig parse_model_config(const Json& json, const std::string& file);
ModelConfig parse_model_config(std::string_view text, const std::string& file);

// The inverse: every field under its name in config.json. parse_model_config makes the same configuration of them.
Json::Object config_fields(const ModelConfig& config);

// "gelu_new" for kGeluNew, as in config.json.
std::string_view name_of(ActivationName activation);
std::optional<ActivationName> activation_of(std::string_view name);

}  // namespace stagecoach
