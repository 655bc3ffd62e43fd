#include "runtime/weight_source.hpp"

#include <fmt/format.h>

#include <system_error>

#include "runtime/hdf5_file.hpp"
#include "runtime/input_file.hpp"
#include "runtime/keras_h5.hpp"
#include "runtime/model_config.hpp"
#include "runtime/native_model.hpp"
#include "runtime/safetensors.hpp"
#include "runtime/synthetic.hpp"
#include "runtime/tokenizer_json.hpp"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kMaxConfigBytes = 16 << 20;
constexpr std::int64_t kMaxTokenizerBytes = std::int64_t{1} << 30;

void require_directory(const fs::path& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (status.type() == fs::file_type::not_found) {
    throw WeightError(
        fmt::format("{}: does not exist; expected a Hugging Face model directory, a model file of stagecoach convert, "
                    "or synthetic:gpt2-xl",
                    path.string()));
  }
  if (status.type() == fs::file_type::none) throw WeightError(fmt::format("{}: {}", path.string(), error.message()));
  if (status.type() != fs::file_type::directory) {
    throw WeightError(
        fmt::format("{}: is a file; expected the model's directory, with config.json and model.safetensors, or a model "
                    "file of stagecoach "
                    "convert",
                    path.string()));
  }
}

// The native file that `name` stands for: itself, or model.h5 in a directory without config.json.
std::optional<std::string> native_file(const std::string& name) {
  const fs::path path(name);
  if (fs::is_regular_file(path)) return looks_like_hdf5(name) ? std::optional(name) : std::nullopt;
  if (fs::exists(path / "config.json") || !fs::is_regular_file(path / kNativeFileInDirectory)) return std::nullopt;
  return (path / kNativeFileInDirectory).string();
}

constexpr const char* kTokenizerFile = "tokenizer.json";

enum class TokenizerFiles : std::uint8_t { kNone, kTwo, kOne };

// vocab.json and merges.txt, else tokenizer.json.
TokenizerFiles tokenizer_files(const fs::path& directory) {
  const bool has_vocab = fs::exists(directory / "vocab.json");
  const bool has_merges = fs::exists(directory / "merges.txt");
  if (has_vocab && has_merges) return TokenizerFiles::kTwo;
  if (fs::exists(directory / kTokenizerFile)) return TokenizerFiles::kOne;
  if (has_vocab != has_merges) {
    throw WeightError(fmt::format(
        "{}: has {} but no {}; the tokenizer needs both, or {}, or none for token prompts only", directory.string(),
        has_vocab ? "vocab.json" : "merges.txt", has_vocab ? "merges.txt" : "vocab.json", kTokenizerFile));
  }
  return TokenizerFiles::kNone;
}

TokenizerTexts read_tokenizer_json(const fs::path& path) {
  return texts_of_tokenizer_json(read_text_file(path, kMaxTokenizerBytes), path.string());
}

std::optional<Tokenizer> tokenizer_in(const fs::path& directory) {
  switch (tokenizer_files(directory)) {
    case TokenizerFiles::kTwo:
      return Tokenizer::from_files(directory / "vocab.json", directory / "merges.txt");
    case TokenizerFiles::kOne: {
      const std::string name = (directory / kTokenizerFile).string();
      const TokenizerTexts texts = read_tokenizer_json(name);
      return Tokenizer::from_text({texts.vocab_json, name + ": model.vocab"},
                                  {texts.merges_txt, name + ": model.merges"});
    }
    case TokenizerFiles::kNone:
      break;
  }
  return std::nullopt;
}

void require_fitting(const std::optional<Tokenizer>& tokenizer, const ModelConfig& config, const std::string& file,
                     std::string_view configuration) {
  if (!tokenizer || tokenizer->vocab_size() <= config.vocab_size) return;
  throw WeightError(fmt::format("{}: has {} tokens, but {} has vocab_size {}; do the files belong together?", file,
                                tokenizer->vocab_size(), configuration, config.vocab_size));
}

std::unique_ptr<WeightSource> open_weights(const fs::path& directory, const ModelConfig& config) {
  if (!has_safetensors(directory) && fs::exists(directory / kKerasFile)) {
    return open_keras_h5(directory / kKerasFile, config);
  }
  return open_safetensors(directory, config);
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

Model open_directory(const std::string& name, ModelParts parts) {
  const fs::path directory(name);
  require_directory(directory);
  const fs::path config_path = directory / "config.json";
  if (!fs::exists(config_path)) {
    throw WeightError(fmt::format("{}: has no config.json; expected a Hugging Face model directory", name));
  }
  Model model;
  model.name = name;
  model.config = parse_model_config(read_text_file(config_path, kMaxConfigBytes), config_path.string());
  model.weights = open_weights(directory, model.config);
  model.dtype = model.weights->dtype_of(tensor_table(model.config).front());
  if (parts == ModelParts::kNoTokenizer) return model;
  model.tokenizer = tokenizer_in(directory);
  const bool one = tokenizer_files(directory) == TokenizerFiles::kOne;
  require_fitting(model.tokenizer, model.config, (directory / (one ? kTokenizerFile : "vocab.json")).string(),
                  "config.json");
  return model;
}

Model open_native(const std::string& name, const std::string& file, ModelParts parts) {
  Model model = open_native_model(file, parts);
  model.name = name;
  require_fitting(model.tokenizer, model.config, file + ": vocab.json", "its configuration");
  return model;
}

// Lets `action` run on a name of the file system. A directory that may not be searched, or a name that is too long, is
// a WeightError, and so is what is wrong with the tokenizer.
template <typename Action>
auto on_files(const std::string& name, const Action& action) {
  try {
    return action();
  } catch (const fs::filesystem_error& error) {
    throw WeightError(fmt::format("{}: {}", name, error.code().message()));
  } catch (const TokenizerError& error) {
    throw WeightError(error.what());
  }
}

}  // namespace

void WeightSource::read_panels(const TensorSpec& tensor, std::int64_t, std::int64_t, std::span<std::byte>) const {
  throw std::invalid_argument(fmt::format("tensor {}: is not stored in panels", tensor.name));
}

void require_convertible(const Model& model, DType dtype) {
  if (dtype == DType::kInt8) return;
  for (const TensorSpec& spec : tensor_table(model.config)) {
    if (model.weights->dtype_of(spec) != DType::kInt8) continue;
    throw WeightError(
        fmt::format("{}: holds int8 weights, from which {} ones cannot be made; leave --dtype out, or use "
                    "the model that it was converted from",
                    model.name, name_of(dtype)));
  }
}

Model open_model(const std::string& name, ModelParts parts) {
  if (is_synthetic(name)) return open_synthetic(name);
  return on_files(name, [&] {
    const std::optional<std::string> file = native_file(name);
    return file ? open_native(name, *file, parts) : open_directory(name, parts);
  });
}

Tokenizer open_tokenizer(const std::string& name) {
  if (!is_synthetic(name)) {
    std::optional<Tokenizer> tokenizer = on_files(name, [&] {
      if (const std::optional<std::string> file = native_file(name))
        return open_native(name, *file, ModelParts::kAll).tokenizer;
      require_directory(name);
      return tokenizer_in(name);
    });
    if (tokenizer) return std::move(*tokenizer);
  }
  throw WeightError(fmt::format(
      "{}: has no tokenizer; expected a directory with vocab.json and merges.txt, or tokenizer.json", name));
}

std::optional<TokenizerTexts> read_tokenizer_texts(const std::string& name) {
  if (is_synthetic(name)) return std::nullopt;
  return on_files(name, [&]() -> std::optional<TokenizerTexts> {
    if (const std::optional<std::string> file = native_file(name)) return read_native_tokenizer(*file);
    const fs::path directory(name);
    switch (tokenizer_files(directory)) {
      case TokenizerFiles::kTwo:
        return TokenizerTexts{read_text_file(directory / "vocab.json", kMaxTokenizerBytes),
                              read_text_file(directory / "merges.txt", kMaxTokenizerBytes)};
      case TokenizerFiles::kOne:
        return read_tokenizer_json(directory / kTokenizerFile);
      case TokenizerFiles::kNone:
        break;
    }
    return std::nullopt;
  });
}

}  // namespace stagecoach
