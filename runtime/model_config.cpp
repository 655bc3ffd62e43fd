#include "runtime/model_config.hpp"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <limits>

#include "runtime/weight_source.hpp"

namespace stagecoach {
namespace {

constexpr std::pair<std::string_view, ActivationName> kActivations[] = {
    {"gelu_new", ActivationName::kGeluNew},
    {"gelu", ActivationName::kGelu},
    {"gelu_pytorch_tanh", ActivationName::kGeluPytorchTanh},
    {"relu", ActivationName::kRelu},
    {"silu", ActivationName::kSilu},
};
constexpr std::int64_t kMaxInt32 = std::numeric_limits<std::int32_t>::max();

class Fields {
 public:
  Fields(const Json& json, const std::string& file) : json_(json), file_(file) {}

  [[noreturn]] void fail(std::string_view field, std::string_view what) const {
    throw WeightError(fmt::format("{}: {}: {}", file_, field, what));
  }
  // The value under `name` or under GPT2Config's alias for it; null pointer when neither is there.
  const Json* find(std::string_view name, std::string_view alias = {}) const {
    const Json* value = json_.find(name);
    const Json* other = alias.empty() ? nullptr : json_.find(alias);
    if (value != nullptr && other != nullptr && shown(*value) != shown(*other)) {
      fail(name, fmt::format("is {}, but its alias {} is {}; keep one of them", shown(*value), alias, shown(*other)));
    }
    return value != nullptr ? value : other;
  }
  // A positive whole number.
  void read(std::string_view name, std::string_view alias, std::int32_t& field) const {
    if (const Json* value = find(name, alias)) field = dimension(name, *value);
  }
  void read(std::string_view name, bool& field) const {
    const Json* value = json_.find(name);
    if (value == nullptr) return;
    const bool* flag = value->boolean();
    if (flag == nullptr) fail(name, fmt::format("is {}, expected true or false", shown(*value)));
    field = *flag;
  }
  std::int32_t dimension(std::string_view name, const Json& value) const {
    const std::int64_t* number = value.integer();
    if (number == nullptr) fail(name, fmt::format("is {}, expected a whole number", shown(value)));
    if (*number < 1 || *number > kMaxInt32) {
      fail(name, fmt::format("is {}, expected a number from 1 to {}", *number, kMaxInt32));
    }
    return static_cast<std::int32_t>(*number);
  }

 private:
  const Json& json_;
  const std::string& file_;
};

std::string supported_activations() {
  std::string names;
  for (const auto& [name, activation] : kActivations) {
    if (!names.empty()) names += ", ";
    names += name;
  }
  return names;
}

// What would change the results and is not there.
void refuse_unsupported(const Fields& fields) {
  if (const Json* type = fields.find("model_type")) {
    if (type->string() == nullptr || *type->string() != "gpt2") {
      fields.fail("model_type", fmt::format("is {}; this program runs models of type \"gpt2\" only", shown(*type)));
    }
  }
  bool cross_attention = false;
  fields.read("add_cross_attention", cross_attention);
  if (cross_attention) fields.fail("add_cross_attention", "is true; this program runs decoder-only models");
  if (const Json* quantization = fields.find("quantization_config");
      quantization != nullptr && !quantization->is_null()) {
    fields.fail("quantization_config", "is there; this program reads float32, float16 and bfloat16 checkpoints");
  }
  if (const Json* pruned = fields.find("pruned_heads"); pruned != nullptr && !pruned->is_null()) {
    const Json::Object* heads = pruned->object();
    if (heads == nullptr || !heads->empty()) fields.fail("pruned_heads", "is not empty; this program runs all heads");
  }
}

void read_activation(const Fields& fields, ModelConfig& config) {
  const Json* value = fields.find("activation_function");
  if (value == nullptr) return;
  const std::string* name = value->string();
  const auto activation = name != nullptr ? activation_of(*name) : std::nullopt;
  if (!activation) {
    fields.fail("activation_function", fmt::format("is {}; supported are {}", shown(*value), supported_activations()));
  }
  config.activation = *activation;
}

void read_epsilon(const Fields& fields, ModelConfig& config) {
  constexpr std::string_view kField = "layer_norm_epsilon";
  const Json* value = fields.find(kField);
  if (value == nullptr) return;
  const double* real = value->real();
  const std::int64_t* integer = value->integer();
  const double epsilon = real != nullptr ? *real : integer != nullptr ? static_cast<double>(*integer) : std::nan("");
  // Also what float32 cannot hold: 1e-60 would be a division by zero in a constant row.
  if (!(epsilon >= std::numeric_limits<float>::min() && epsilon <= 1e6)) {
    fields.fail(kField, fmt::format("is {}, expected a small positive number such as 1e-5", shown(*value)));
  }
  config.layer_norm_epsilon = static_cast<float>(epsilon);
}

std::int32_t eos_id(const Fields& fields, const Json& value, std::int32_t vocab_size) {
  constexpr std::string_view kField = "eos_token_id";
  if (value.is_null()) return -1;
  if (const Json::Array* ids = value.array()) {
    if (ids->empty()) return -1;
    if (ids->size() > 1) {
      fields.fail(kField, fmt::format("is a list of {} ids, but generation ends at one; keep one id", ids->size()));
    }
    if (ids->front().integer() == nullptr) {
      fields.fail(kField, fmt::format("holds {}, expected a token id", shown(ids->front())));
    }
    return eos_id(fields, ids->front(), vocab_size);
  }
  const std::int64_t* id = value.integer();
  if (id == nullptr || *id < -1 || *id > kMaxInt32) {
    fields.fail(kField, fmt::format("is {}, expected a token id or null", shown(value)));
  }
  return *id < vocab_size ? static_cast<std::int32_t>(*id) : -1;
}

// The double that `value` is written as, 1e-05 rather than 9.999999747378752e-06, if it is the same float32.
double short_double(float value) {
  const std::string text = fmt::format("{}", value);
  double result = 0.0;
  std::from_chars(text.data(), text.data() + text.size(), result);
  return static_cast<float>(result) == value ? result : static_cast<double>(value);
}

}  // namespace

std::string_view name_of(ActivationName activation) {
  for (const auto& [name, value] : kActivations) {
    if (value == activation) return name;
  }
  return "?";
}

std::optional<ActivationName> activation_of(std::string_view name) {
  for (const auto& [known, activation] : kActivations) {
    if (known == name) return activation;
  }
  return std::nullopt;
}

ModelConfig parse_model_config(const Json& json, const std::string& file) {
  if (json.object() == nullptr) {
    throw WeightError(
        fmt::format("{}: holds {}, expected an object with the model's dimensions", file, json.type_name()));
  }
  const Fields fields(json, file);
  refuse_unsupported(fields);
  ModelConfig config;
  fields.read("n_layer", "num_hidden_layers", config.n_layer);
  fields.read("n_head", "num_attention_heads", config.n_head);
  fields.read("n_embd", "hidden_size", config.n_embd);
  fields.read("n_positions", "max_position_embeddings",
              config.n_positions);  // n_ctx is ignored, as GPT2Config does
  fields.read("vocab_size", {}, config.vocab_size);
  const Json* inner = fields.find("n_inner");
  if (inner != nullptr && !inner->is_null()) {
    config.n_inner = fields.dimension("n_inner", *inner);
  } else if (config.n_embd > kMaxInt32 / 4) {
    fields.fail("n_embd", fmt::format("is {}, too large for n_inner to be 4 times that", config.n_embd));
  } else {
    config.n_inner = 4 * config.n_embd;
  }
  read_activation(fields, config);
  read_epsilon(fields, config);
  fields.read("scale_attn_weights", config.scale_attn_weights);
  fields.read("scale_attn_by_inverse_layer_idx", config.scale_attn_by_inverse_layer_idx);
  fields.read("reorder_and_upcast_attn", config.reorder_and_upcast_attn);
  fields.read("tie_word_embeddings", config.tie_word_embeddings);
  const Json default_eos(std::int64_t{config.eos_token_id});
  const Json* eos = fields.find("eos_token_id");
  config.eos_token_id = eos_id(fields, eos != nullptr ? *eos : default_eos, config.vocab_size);
  try {
    validate(config);
  } catch (const PlanError& error) {
    throw WeightError(fmt::format("{}: {}", file, error.what()));
  }
  return config;
}

Json::Object config_fields(const ModelConfig& config) {
  Json::Object fields;
  const auto number = [&](const char* name, std::int32_t value) {
    fields.emplace_back(name, Json(std::int64_t{value}));
  };
  const auto flag = [&](const char* name, bool value) { fields.emplace_back(name, Json(value)); };
  number("n_layer", config.n_layer);
  number("n_head", config.n_head);
  number("n_embd", config.n_embd);
  number("n_inner", config.n_inner);
  number("n_positions", config.n_positions);
  number("vocab_size", config.vocab_size);
  fields.emplace_back("activation_function", Json(std::string(name_of(config.activation))));
  fields.emplace_back("layer_norm_epsilon", Json(short_double(config.layer_norm_epsilon)));
  flag("scale_attn_weights", config.scale_attn_weights);
  flag("scale_attn_by_inverse_layer_idx", config.scale_attn_by_inverse_layer_idx);
  flag("reorder_and_upcast_attn", config.reorder_and_upcast_attn);
  flag("tie_word_embeddings", config.tie_word_embeddings);
  number("eos_token_id", config.eos_token_id);
  return fields;
}

ModelConfig parse_model_config(std::string_view text, const std::string& file) {
  try {
    return parse_model_config(parse_json(text), file);
  } catch (const JsonError& error) {
    throw WeightError(fmt::format("{}: {}", file, error.what()));
  }
}

}  // namespace stagecoach
