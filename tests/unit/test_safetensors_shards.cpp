#include <doctest/doctest.h>

#include "runtime/safetensors.hpp"
#include "tests/unit/safetensors_builder.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

// The tiny model in two shards, and an index that can be bent.
struct Sharded {
  std::vector<FakeTensor> first, second;
  std::vector<std::pair<std::string, std::string>> map;
  TemporaryDirectory directory;

  Sharded() {
    for (const FakeTensor& tensor : tensors_of(tiny_config())) {
      const bool in_first = first.size() < 11;
      (in_first ? first : second).push_back(tensor);
      map.emplace_back(tensor.name, in_first ? "a.safetensors" : "b.safetensors");
    }
  }
  void write() const {
    directory.write("a.safetensors", safetensors(first));
    directory.write("b.safetensors", safetensors(second));
    std::string index = R"({"metadata":{"total_size":1},"weight_map":{)";
    for (std::size_t i = 0; i < map.size(); ++i) {
      index += fmt::format(R"({}"{}":"{}")", i > 0 ? "," : "", map[i].first, map[i].second);
    }
    directory.write("model.safetensors.index.json", index + "}}");
  }
  std::string error() const {
    return message_of<WeightError>([&] { open_safetensors(directory.path(), tiny_config()); });
  }
  std::string error_when_written() const {
    write();
    return error();
  }
};

}  // namespace

TEST_CASE("shards: every tensor is found") {
  const Sharded model;
  model.write();
  const auto source = open_safetensors(model.directory.path(), tiny_config());
  float first = 0.0F;
  for (const TensorSpec& spec : tensor_table(tiny_config())) {
    std::vector<float> values(static_cast<std::size_t>(spec.elements()));
    source->read_rows(spec, 0, spec.rows, std::as_writable_bytes(std::span(values)));
    CHECK(values.front() == first);
    first += 1000.0F;
  }
}

TEST_CASE("shards: a single file comes first when both are there") {
  const Sharded model;
  model.write();
  model.directory.write("model.safetensors", "short");
  CHECK(contains(model.error(), "/model.safetensors: is 5 bytes long"));
}

TEST_CASE("shards: what the index promises must be true") {
  {
    const Sharded model;
    model.write();
    std::filesystem::remove(model.directory.path() / "b.safetensors");
    CHECK(
        contains(model.error(), "model.safetensors.index.json: the shard b.safetensors is missing from the directory"));
  }
  {
    Sharded model;
    model.map[0].second = "b.safetensors";
    CHECK(contains(model.error_when_written(),
                   "tensor transformer.wte.weight: is not in b.safetensors, where the index says"));
  }
  {
    Sharded model;
    model.map.emplace_back("transformer.h.9.x", "a.safetensors");
    CHECK(contains(model.error_when_written(), "tensor transformer.h.9.x: is not in a.safetensors"));
  }
  {
    Sharded model;
    model.map.pop_back();
    CHECK(contains(model.error_when_written(),
                   "tensor transformer.ln_f.bias: is in b.safetensors, but not in the index"));
  }
  {
    Sharded model;
    model.second.push_back(model.first[0]);
    const std::string error = model.error_when_written();
    CHECK(contains(error,
                   "/b.safetensors: tensor wte.weight: is there twice, as transformer.wte.weight in a.safetensors"));
  }
  {
    Sharded model;
    model.second.pop_back();
    model.map.pop_back();
    CHECK(contains(model.error_when_written(), "index.json: tensor ln_f.bias: is missing"));
  }
}

TEST_CASE("shards: names that lead out of the directory are refused") {
  for (const char* name :
       {"../a.safetensors", "/etc/passwd", "sub/a.safetensors", "..", ".", "", "a\\\\b", "a\\u0000b"}) {
    CAPTURE(name);
    Sharded model;
    model.map[2].second = name;
    const std::string error = model.error_when_written();
    CHECK(contains(error, "is not a plain file name in the same directory"));
  }
}

TEST_CASE("shards: broken indexes") {
  const Sharded model;
  model.write();
  const auto error_with = [&](std::string_view index) {
    model.directory.write("model.safetensors.index.json", index);
    return model.error();
  };
  CHECK(contains(error_with(""), "model.safetensors.index.json: line 1"));
  CHECK(contains(error_with("[]"), "weight_map: is missing"));
  CHECK(contains(error_with("{}"), "weight_map: is missing"));
  CHECK(contains(error_with(R"({"weight_map": []})"), "weight_map: is missing"));
  CHECK(contains(error_with(R"({"weight_map": {"a": 1}})"), "tensor a: a number is not a plain file name"));
  CHECK(contains(error_with(R"({"weight_map": {}})"), "tensor wte.weight: is missing"));
  CHECK(contains(error_with(R"({"weight_map": {"a": "x", "a": "y"}})"), "duplicate key \"a\""));
}
