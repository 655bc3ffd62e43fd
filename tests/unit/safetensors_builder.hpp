// Small safetensors files and model directories for tests: a builder whose output can be bent in every way
// that the reader must notice, and a directory that is removed at the end of its scope.
#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "partition/model.hpp"

namespace stagecoach::test {

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::random_device random;
    path_ = std::filesystem::temp_directory_path() / fmt::format("stagecoach-test-{:08x}{:08x}", random(), random());
    std::filesystem::create_directories(path_);
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::string name() const { return path_.string(); }
  void write(const std::string& file, std::string_view bytes) const {
    std::ofstream(path_ / file, std::ios::binary) << bytes;
  }

 private:
  std::filesystem::path path_;
};

struct FakeTensor {
  std::string name;
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::string bytes;
};

inline std::string with_length(const std::string& header, const std::string& data) {
  std::string file(8, '\0');
  const std::uint64_t length = header.size();
  std::memcpy(file.data(), &length, sizeof length);
  return file + header + data;
}

inline std::string header_of(const std::vector<FakeTensor>& tensors) {
  std::string header = R"({"__metadata__":{"format":"pt"})";
  std::size_t offset = 0;
  for (const FakeTensor& tensor : tensors) {
    header += fmt::format(R"(,"{}":{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})", tensor.name, tensor.dtype,
                          fmt::join(tensor.shape, ","), offset, offset + tensor.bytes.size());
    offset += tensor.bytes.size();
  }
  return header + "}";
}

inline std::string safetensors(const std::vector<FakeTensor>& tensors) {
  std::string data;
  for (const FakeTensor& tensor : tensors) data += tensor.bytes;
  return with_length(header_of(tensors), data);
}

// One float32 tensor; value `i` is first + i, so that every element tells where it comes from.
inline FakeTensor float_tensor(std::string name, std::vector<std::int64_t> shape, float first = 0.0F) {
  std::int64_t count = 1;
  for (const std::int64_t dimension : shape) count *= dimension;
  FakeTensor tensor{std::move(name), "F32", std::move(shape), {}};
  for (std::int64_t i = 0; i < count; ++i) {
    const float value = first + static_cast<float>(i);
    tensor.bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  return tensor;
}

inline ModelConfig tiny_config() {
  ModelConfig config;
  config.n_layer = 2;
  config.n_head = 2;
  config.n_embd = 4;
  config.n_inner = 6;
  config.n_positions = 5;
  config.vocab_size = 7;
  config.eos_token_id = -1;
  return config;
}

constexpr const char* kTinyConfigJson =
    R"({"model_type":"gpt2","n_layer":2,"n_head":2,"n_embd":4,"n_inner":6,"n_positions":5,"vocab_size":7})";

// All tensors of the model; those of tensor t start with the value 1000 t.
inline std::vector<FakeTensor> tensors_of(const ModelConfig& config, const std::string& prefix = "transformer.") {
  std::vector<FakeTensor> tensors;
  for (const TensorSpec& spec : tensor_table(config)) {
    const std::string name = spec.role == TensorRole::kHeadWeight ? spec.name : prefix + spec.name;
    tensors.push_back(float_tensor(
        name, spec.is_vector ? std::vector<std::int64_t>{spec.cols} : std::vector<std::int64_t>{spec.rows, spec.cols},
        1000.0F * static_cast<float>(tensors.size())));
  }
  return tensors;
}

// What `action` throws as an E, or "" when it throws nothing.
template <typename E, typename F>
std::string message_of(F&& action) {
  try {
    action();
  } catch (const E& error) {
    return error.what();
  }
  return "";
}

inline bool contains(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

}  // namespace stagecoach::test
