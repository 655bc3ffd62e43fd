#include "runtime/weight_source.hpp"

#include <fmt/format.h>

#include <system_error>

#include "runtime/input_file.hpp"
#include "runtime/model_config.hpp"
#include "runtime/safetensors.hpp"
#include "runtime/synthetic.hpp"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kMaxConfigBytes = 16 << 20;

void require_directory(const fs::path& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (status.type() == fs::file_type::not_found) {
    throw WeightError(
        fmt::format("{}: does not exist; expected a Hugging Face model directory or synthetic:gpt2-xl", path.string()));
  }
  if (status.type() == fs::file_type::none) throw WeightError(fmt::format("{}: {}", path.string(), error.message()));
  if (status.type() != fs::file_type::directory) {
    throw WeightError(fmt::format(
        "{}: is a file; expected the model's directory, with config.json and model.safetensors", path.string()));
  }
}

std::optional<Tokenizer> tokenizer_in(const fs::path& directory) {
  const fs::path vocab = directory / "vocab.json";
  const fs::path merges = directory / "merges.txt";
  const bool has_vocab = fs::exists(vocab);
  const bool has_merges = fs::exists(merges);
  if (!has_vocab && !has_merges) return std::nullopt;
  if (has_vocab != has_merges) {
    throw WeightError(fmt::format("{}: has {} but no {}; the tokenizer needs both, or neither for token prompts only",
                                  directory.string(), has_vocab ? "vocab.json" : "merges.txt",
                                  has_vocab ? "merges.txt" : "vocab.json"));
  }
  try {
    return Tokenizer::from_files(vocab, merges);
  } catch (const TokenizerError& error) {
    throw WeightError(error.what());
  }
}

std::optional<Tokenizer> tokenizer_of_model(const fs::path& directory, const ModelConfig& config) {
  std::optional<Tokenizer> tokenizer = tokenizer_in(directory);
  if (tokenizer && tokenizer->vocab_size() > config.vocab_size) {
    throw WeightError(fmt::format("{}: has {} tokens, but config.json has vocab_size {}; do the files belong together?",
                                  (directory / "vocab.json").string(), tokenizer->vocab_size(), config.vocab_size));
  }
  return tokenizer;
}

Model open_synthetic(const std::string& name) {
  const SyntheticModel synthetic = parse_synthetic(name);
  Model model;
  model.name = name;
  model.config = synthetic.config;
  model.dtype = synthetic.dtype;
  model.weights = make_synthetic_source(synthetic);
  return model;
}

Model open_directory(const std::string& name) {
  const fs::path directory(name);
  require_directory(directory);
  const fs::path config_path = directory / "config.json";
  if (!fs::exists(config_path)) {
    throw WeightError(fmt::format("{}: has no config.json; expected a Hugging Face model directory", name));
  }
  Model model;
  model.name = name;
  model.config = parse_model_config(read_text_file(config_path, kMaxConfigBytes), config_path.string());
  model.weights = open_safetensors(directory, model.config);
  model.dtype = model.weights->dtype_of(tensor_table(model.config).front());
  model.tokenizer = tokenizer_of_model(directory, model.config);
  return model;
}

}  // namespace

Model open_model(const std::string& name) {
  if (is_synthetic(name)) return open_synthetic(name);
  try {
    return open_directory(name);
  } catch (const fs::filesystem_error& error) {  // a directory that may not be searched, a name that is too long
    throw WeightError(fmt::format("{}: {}", name, error.code().message()));
  }
}

Tokenizer open_tokenizer(const std::string& name) {
  if (!is_synthetic(name)) {
    require_directory(name);
    if (std::optional<Tokenizer> tokenizer = tokenizer_in(name)) return std::move(*tokenizer);
  }
  throw WeightError(fmt::format("{}: has no tokenizer; expected a directory with vocab.json and merges.txt", name));
}

}  // namespace stagecoach
