#include <doctest/doctest.h>

#include "runtime/model_config.hpp"
#include "runtime/weight_source.hpp"
#include "tests/unit/safetensors_builder.hpp"

using namespace stagecoach;
using stagecoach::test::contains;
using stagecoach::test::message_of;

namespace {

ModelConfig parse(std::string_view text) {
  return parse_model_config(text, "/m/config.json");
}
std::string error_of(std::string_view text) {
  return message_of<WeightError>([&] { parse(text); });
}

}  // namespace

TEST_CASE("config.json: absent fields have GPT2Config's defaults") {
  const ModelConfig config = parse("{}");
  CHECK(config.n_layer == 12);
  CHECK(config.n_head == 12);
  CHECK(config.n_embd == 768);
  CHECK(config.n_inner == 3072);
  CHECK(config.n_positions == 1024);
  CHECK(config.vocab_size == 50257);
  CHECK(config.activation == ActivationName::kGeluNew);
  CHECK(config.layer_norm_epsilon == 1e-5F);
  CHECK(config.scale_attn_weights);
  CHECK(!config.scale_attn_by_inverse_layer_idx);
  CHECK(!config.reorder_and_upcast_attn);
  CHECK(config.tie_word_embeddings);
  CHECK(config.eos_token_id == 50256);
}

TEST_CASE("config.json: gpt2-xl as published") {
  const ModelConfig config = parse(R"({
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 50256,
    "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2", "n_ctx": 1024, "n_embd": 1600, "n_head": 25, "n_layer": 48, "n_positions": 1024,
    "output_past": true, "resid_pdrop": 0.1, "summary_activation": null, "summary_first_dropout": 0.1,
    "summary_proj_to_labels": true, "summary_type": "cls_index", "summary_use_proj": true,
    "task_specific_params": {"text-generation": {"do_sample": true, "max_length": 50}}, "vocab_size": 50257})");
  CHECK(config.n_layer == 48);
  CHECK(config.head_dim() == 64);
  CHECK(config.n_inner == 6400);
  CHECK(config.eos_token_id == 50256);
}

TEST_CASE("config.json: every honoured field") {
  const ModelConfig config = parse(R"({"n_layer": 3, "n_head": 5, "n_embd": 20, "n_inner": 37, "n_positions": 32,
    "n_ctx": 99, "vocab_size": 101, "activation_function": "silu", "layer_norm_epsilon": 0.01, "scale_attn_weights": false,
    "scale_attn_by_inverse_layer_idx": true, "reorder_and_upcast_attn": true, "tie_word_embeddings": false,
    "eos_token_id": 7})");
  CHECK(config.n_layer == 3);
  CHECK(config.n_head == 5);
  CHECK(config.n_embd == 20);
  CHECK(config.n_inner == 37);
  CHECK(config.n_positions == 32);
  CHECK(config.vocab_size == 101);
  CHECK(config.activation == ActivationName::kSilu);
  CHECK(config.layer_norm_epsilon == 0.01F);
  CHECK(!config.scale_attn_weights);
  CHECK(config.scale_attn_by_inverse_layer_idx);
  CHECK(config.reorder_and_upcast_attn);
  CHECK(!config.tie_word_embeddings);
  CHECK(config.eos_token_id == 7);
}

TEST_CASE("config.json: activations by name, both ways") {
  for (const char* name : {"gelu_new", "gelu", "gelu_pytorch_tanh", "relu", "silu"}) {
    const ModelConfig config = parse(fmt::format(R"({{"activation_function": "{}"}})", name));
    CHECK(name_of(config.activation) == name);
  }
  const std::string error = error_of(R"({"activation_function": "quick_gelu"})");
  CHECK(error ==
        "/m/config.json: activation_function: is \"quick_gelu\"; supported are gelu_new, gelu, "
        "gelu_pytorch_tanh, relu, silu");
  CHECK(contains(error_of(R"({"activation_function": null})"), "activation_function"));
}

TEST_CASE("config.json: n_inner null and absent are 4 * n_embd") {
  CHECK(parse(R"({"n_embd": 24, "n_inner": null})").n_inner == 96);
  CHECK(parse(R"({"n_embd": 24})").n_inner == 96);
  CHECK(!error_of(R"({"n_embd": 2147483647})").empty());
}

TEST_CASE("config.json: GPT2Config's aliases") {
  const ModelConfig config = parse(R"({"hidden_size": 20, "num_hidden_layers": 3, "num_attention_heads": 5,
                                       "max_position_embeddings": 32})");
  CHECK(config.n_embd == 20);
  CHECK(config.n_layer == 3);
  CHECK(config.n_head == 5);
  CHECK(config.n_positions == 32);
  CHECK(contains(error_of(R"({"n_embd": 24, "hidden_size": 36})"), "alias hidden_size"));
  CHECK(parse(R"({"n_embd": 24, "hidden_size": 24})").n_embd == 24);
}

TEST_CASE("config.json: the end of text") {
  CHECK(parse(R"({"eos_token_id": null})").eos_token_id == -1);
  CHECK(parse(R"({"eos_token_id": []})").eos_token_id == -1);
  CHECK(parse(R"({"eos_token_id": -1})").eos_token_id == -1);
  CHECK(parse(R"({"eos_token_id": [3]})").eos_token_id == 3);
  CHECK(parse(R"({"vocab_size": 100})").eos_token_id == -1);  // the default 50256 can never be generated
  CHECK(parse(R"({"vocab_size": 100, "eos_token_id": 99})").eos_token_id == 99);
  CHECK(parse(R"({"vocab_size": 100, "eos_token_id": 100})").eos_token_id == -1);
  for (const char* value : {"[1, 2]", "-2", "1.5", "\"x\"", "true", "[[1]]", "[null]", "99999999999"}) {
    CAPTURE(value);
    CHECK(contains(error_of(fmt::format(R"({{"eos_token_id": {}}})", value)), "/m/config.json: eos_token_id: "));
  }
}

TEST_CASE("config.json: dimensions of the wrong type or size name their field") {
  for (const char* field : {"n_layer", "n_head", "n_embd", "n_inner", "n_positions", "vocab_size"}) {
    for (const char* value : {"0", "-1", "1.5", "12.0", "1e3", "\"12\"", "true", "[12]", "{}", "2147483648", "1e30",
                              "99999999999999999999"}) {
      CAPTURE(field);
      CAPTURE(value);
      const std::string error = error_of(fmt::format(R"({{"{}": {}}})", field, value));
      CHECK(contains(error, fmt::format("/m/config.json: {}: ", field)));
    }
  }
  CHECK(contains(error_of(R"({"n_layer": null})"), "n_layer: is null, expected a whole number"));
  CHECK(
      contains(error_of(R"({"n_embd": 768, "n_head": 5})"), "/m/config.json: n_embd 768 is not divisible by n_head 5"));
  CHECK(contains(error_of(R"({"vocab_size": 2147483647})"), "vocab_size"));
}

TEST_CASE("config.json: flags must be true or false") {
  for (const char* field :
       {"scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "tie_word_embeddings"}) {
    for (const char* value : {"0", "1", "null", "\"true\"", "[]"}) {
      CHECK(contains(error_of(fmt::format(R"({{"{}": {}}})", field, value)), fmt::format("{}: is ", field)));
    }
  }
}

TEST_CASE("config.json: layer_norm_epsilon") {
  CHECK(parse(R"({"layer_norm_epsilon": 1})").layer_norm_epsilon == 1.0F);
  for (const char* value : {"0", "-1e-5", "1e-60", "1e300", "\"1e-5\"", "null", "true"}) {
    CHECK(contains(error_of(fmt::format(R"({{"layer_norm_epsilon": {}}})", value)), "layer_norm_epsilon: is "));
  }
}

TEST_CASE("config.json: models that this program does not run are refused") {
  CHECK(contains(error_of(R"({"model_type": "llama"})"), "model_type: is \"llama\""));
  CHECK(contains(error_of(R"({"model_type": 1})"), "model_type"));
  CHECK(contains(error_of(R"({"add_cross_attention": true})"), "add_cross_attention"));
  CHECK_NOTHROW(parse(R"({"add_cross_attention": false, "pruned_heads": {}, "quantization_config": null})"));
  CHECK(contains(error_of(R"({"pruned_heads": {"1": [2]}})"), "pruned_heads"));
  CHECK(contains(error_of(R"({"quantization_config": {"bits": 4}})"), "quantization_config"));
}

TEST_CASE("config.json: what is no object, and broken JSON") {
  CHECK(error_of("[]") == "/m/config.json: holds a list, expected an object with the model's dimensions");
  CHECK(contains(error_of("{\n\"n_layer\": 3,,}"), "/m/config.json: line 2, column 15"));
  CHECK(contains(error_of(R"({"n_layer": NaN})"), "line 1"));
  CHECK(contains(error_of(R"({"n_layer": 1, "n_layer": 2})"), "duplicate key \"n_layer\""));
}
