#include <doctest/doctest.h>

#include <map>
#include <set>

#include "partition/model.hpp"
#include "runtime/synthetic.hpp"

using namespace stagecoach;

namespace {

ModelConfig config_of(const std::string& name) {
  return parse_synthetic("synthetic:" + name).config;
}

}  // namespace

TEST_CASE("tensor table: parameter counts of the published models") {
  CHECK(parameter_count(config_of("gpt2")) == 124439808);
  CHECK(parameter_count(config_of("gpt2-medium")) == 354823168);
  CHECK(parameter_count(config_of("gpt2-large")) == 774030080);
  CHECK(parameter_count(config_of("gpt2-xl")) == 1557611200);
  CHECK(parameter_count(config_of("gpt2-xl,tie_word_embeddings=false")) == 1557611200 + 50257 * 1600);
}

TEST_CASE("tensor table: names and shapes") {
  const std::vector<TensorSpec> table = tensor_table(config_of("gpt2-xl"));
  CHECK(table.size() == 2 + 48 * 12 + 2);
  std::map<std::string, TensorSpec> by_name;
  for (const TensorSpec& spec : table) by_name.emplace(spec.name, spec);
  CHECK(by_name.size() == table.size());
  struct Row {
    const char* name;
    std::int64_t rows, cols;
    bool is_vector;
    std::int32_t block;
  };
  const Row rows[] = {
      {"wte.weight", 50257, 1600, false, -1},
      {"wpe.weight", 1024, 1600, false, -1},
      {"h.0.ln_1.weight", 1, 1600, true, 0},
      {"h.3.ln_1.bias", 1, 1600, true, 3},
      {"h.3.attn.c_attn.weight", 1600, 4800, false, 3},
      {"h.3.attn.c_attn.bias", 1, 4800, true, 3},
      {"h.47.attn.c_proj.weight", 1600, 1600, false, 47},
      {"h.47.attn.c_proj.bias", 1, 1600, true, 47},
      {"h.9.ln_2.weight", 1, 1600, true, 9},
      {"h.9.ln_2.bias", 1, 1600, true, 9},
      {"h.9.mlp.c_fc.weight", 1600, 6400, false, 9},
      {"h.9.mlp.c_fc.bias", 1, 6400, true, 9},
      {"h.9.mlp.c_proj.weight", 6400, 1600, false, 9},
      {"h.9.mlp.c_proj.bias", 1, 1600, true, 9},
      {"ln_f.weight", 1, 1600, true, -1},
      {"ln_f.bias", 1, 1600, true, -1},
  };
  for (const Row& row : rows) {
    CAPTURE(row.name);
    REQUIRE(by_name.contains(row.name));
    const TensorSpec& spec = by_name.at(row.name);
    CHECK(spec.rows == row.rows);
    CHECK(spec.cols == row.cols);
    CHECK(spec.is_vector == row.is_vector);
    CHECK(spec.block == row.block);
  }
  CHECK(!by_name.contains("lm_head.weight"));
  CHECK(tensor_table(config_of("gpt2,tie_word_embeddings=false")).back().name == "lm_head.weight");
}

TEST_CASE("tensor table: stages cover every tensor once, the tied embedding also where the head is") {
  for (const bool tied : {true, false}) {
    ModelConfig config = config_of("gpt2");
    config.tie_word_embeddings = tied;
    for (std::int32_t stages = 1; stages <= config.n_layer; ++stages) {
      CAPTURE(tied);
      CAPTURE(stages);
      std::map<std::string, int> count;
      for (std::int32_t s = 0; s < stages; ++s) {
        const BlockRange blocks{s * config.n_layer / stages, (s + 1) * config.n_layer / stages - 1};
        std::set<std::string> mine;
        for (const TensorSpec& spec : stage_tensors(config, blocks)) {
          CHECK(mine.insert(spec.name).second);
          ++count[spec.name];
        }
        CHECK(mine.contains("wte.weight") == (s == 0 || (tied && s == stages - 1)));
        CHECK(mine.contains("lm_head.weight") == (!tied && s == stages - 1));
        CHECK(mine.contains("ln_f.bias") == (s == stages - 1));
      }
      for (const TensorSpec& spec : tensor_table(config)) {
        CHECK(count[spec.name] == (spec.name == "wte.weight" && tied && stages > 1 ? 2 : 1));
      }
      CHECK(count.size() == tensor_table(config).size());
    }
  }
}

TEST_CASE("tensor table: attention scale") {
  ModelConfig config = config_of("gpt2");
  CHECK(config.attention_scale(5) == 0.125F);
  config.scale_attn_by_inverse_layer_idx = true;
  CHECK(config.attention_scale(0) == 0.125F);
  CHECK(config.attention_scale(4) == 0.025F);
  config.scale_attn_weights = false;
  CHECK(config.attention_scale(4) == 0.2F);
}
