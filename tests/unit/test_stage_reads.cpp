// Each stage reads its own tensors and nothing else, and finds broken values in them: for every file format.
#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <fstream>
#include <functional>
#include <limits>
#include <stdexcept>
#include <thread>

#include "kernels/backend.hpp"
#include "kernels/convert.hpp"
#include "partition/plan.hpp"
#include "partition/stage_bytes.hpp"
#include "runtime/device_layout.hpp"
#include "runtime/native_model.hpp"
#include "runtime/packed_tensor.hpp"
#include "runtime/stage_weights.hpp"
#include "tests/unit/keras_builder.hpp"
#include "tests/unit/native_fixture.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

ModelConfig small_config() {
  ModelConfig config = tiny_config();
  config.n_layer = 5;
  config.n_embd = 8;
  config.n_inner = 32;
  config.vocab_size = 50;
  return config;
}

constexpr const char* kConfigJson =
    R"({"n_layer":5,"n_head":2,"n_embd":8,"n_inner":32,"n_positions":5,"vocab_size":50})";

// The directory or file to open, in each of the four formats.
struct Formats : TemporaryDirectory {
  explicit Formats(const std::vector<FakeTensor>& tensors) {
    for (const char* format : {"single", "shards", "keras"}) {
      std::filesystem::create_directory(path() / format);
      write(std::string(format) + "/config.json", kConfigJson);
      names.push_back(name() + "/" + format);
    }
    write("single/model.safetensors", safetensors(tensors));
    std::string map;
    for (std::size_t half = 0; half < 2; ++half) {
      const auto middle = tensors.begin() + static_cast<std::ptrdiff_t>(tensors.size() / 2);
      const std::vector<FakeTensor> part =
          half == 0 ? std::vector(tensors.begin(), middle) : std::vector(middle, tensors.end());
      write(fmt::format("shards/part{}.safetensors", half), safetensors(part));
      for (const FakeTensor& t : part) {
        map += fmt::format(R"({}"{}":"part{}.safetensors")", map.empty() ? "" : ",", t.name, half);
      }
    }
    write("shards/model.safetensors.index.json", R"({"weight_map":{)" + map + "}}");
    write_keras(name() + "/keras/tf_model.h5", tensors);
  }
  void add_native(const std::string& file, const NativeOptions& options) {
    names.push_back(name() + "/" + file);
    write_native_model(open_model(names.front()), {}, options, names.back(), {});
  }
  void add_native() {
    add_native("rows.h5", {std::nullopt, NativeLayout::kRows});
    add_native("panels.h5", {});
    add_native("int8.h5", {DType::kInt8});
  }
  std::vector<std::string> names;
};

StageWeights load(const Model& model, BlockRange blocks, DType dtype = DType::kFloat32) {
  const auto backend = make_reference_backend();
  StageWeights weights = load_stage(*backend, *model.weights, model.config, blocks, dtype, {});
  weights = {};  // before the backend
  return weights;
}

void set_value(FakeTensor& tensor, std::size_t index, float value) {
  std::memcpy(tensor.bytes.data() + 4 * index, &value, sizeof value);
}

}  // namespace

TEST_CASE("every stage reads the bytes of its own tensors, once, and no others") {
  const ModelConfig config = small_config();
  Formats formats(tensors_of(config, ""));
  formats.add_native();
  for (const std::string& name : formats.names) {
    for (std::int32_t stages = 1; stages <= config.n_layer; ++stages) {
      for (const StageSpec& stage : even_split(config, stages)) {
        const Model model = open_model(name);
        CHECK(model.weights->bytes_read() == 0);  // headers and lists are not counted
        load(model, stage.blocks, model.dtype);
        std::int64_t expected = 0;
        for (const TensorSpec& spec : stage_tensors(config, stage.blocks)) {
          if (!model.weights->is_packed(spec)) CHECK(stored_bytes(*model.weights, spec) == 4 * spec.elements());
          expected += stored_bytes(*model.weights, spec);
        }
        INFO(name << ", blocks " << stage.blocks.first << " to " << stage.blocks.last);
        CHECK(model.weights->bytes_read() == expected);
      }
    }
  }
}

TEST_CASE("values that are not finite are found while loading and named, by the stage that has them") {
  const ModelConfig config = small_config();
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float value : {std::nanf(""), infinity, -infinity}) {
    std::vector<FakeTensor> tensors = tensors_of(config, "");
    for (FakeTensor& tensor : tensors) {
      if (tensor.name == "h.3.mlp.c_fc.weight") set_value(tensor, 2 * 32 + 7, value);  // (8, 32)
      if (tensor.name == "h.4.ln_2.bias") set_value(tensor, 6, value);
    }
    const Formats formats(tensors);
    for (const std::string& name : formats.names) {
      const Model model = open_model(name);
      CHECK_NOTHROW(load(model, {0, 2}));
      const auto error = [&](std::int32_t block) {
        return message_of<WeightError>([&] { load(model, {block, block}); });
      };
      INFO(error(3));
      CHECK(contains(error(3), name + "/"));
      CHECK(contains(error(3), fmt::format(": element (2, 7) is {}, no finite number", value)));
      CHECK((contains(error(3), "tensor h.3.mlp.c_fc.weight: ") || contains(error(3), "h_._3/mlp/c_fc/weight:0: ")));
      CHECK(contains(error(4), fmt::format(": element 6 is {}, no finite number", value)));
    }
    CHECK(contains(message_of<WeightError>(
                       [&] { write_native_model(open_model(formats.names[0]), {}, {}, formats.name() + "/x.h5", {}); }),
                   "model.safetensors: tensor h.3.mlp.c_fc.weight: element (2, 7) is"));
  }
}

TEST_CASE("values that a 16-bit dtype cannot hold are found while loading") {
  const ModelConfig config = small_config();
  std::vector<FakeTensor> tensors = tensors_of(config, "");
  for (FakeTensor& tensor : tensors) {
    for (std::size_t i = 0; i < tensor.bytes.size() / 4; ++i) set_value(tensor, i, 0.25F);
    if (tensor.name == "wpe.weight") set_value(tensor, 9, 65519.0F);   // rounds to 65504
    if (tensor.name == "h.1.ln_1.weight") set_value(tensor, 3, 1e9F);  // vectors stay float32
    if (tensor.name == "h.2.attn.c_proj.weight") set_value(tensor, 17, -65520.0F);
    if (tensor.name == "h.4.attn.c_proj.weight") set_value(tensor, 17, 3.4e38F);
  }
  Formats formats(tensors);
  formats.add_native("panels.h5", {});
  for (const std::string& name : formats.names) {
    const Model model = open_model(name);
    const auto error = [&](std::int32_t block, DType dtype) {
      return message_of<WeightError>([&] { load(model, {block, block}, dtype); });
    };
    for (const std::int32_t block : {0, 1, 3}) CHECK(error(block, DType::kFloat16).empty());
    CHECK(contains(error(2, DType::kFloat16),
                   ": element (2, 1) is -65520, too large for float16; choose another --dtype"));
    CHECK(error(2, DType::kBFloat16).empty());
    CHECK(contains(error(4, DType::kBFloat16), ", too large for bfloat16"));
    CHECK(error(4, DType::kFloat32).empty());
  }
}

TEST_CASE("packed files give the backend the bytes that rows give it, in every dtype and on any number of threads") {
  const ModelConfig config = small_config();
  Formats formats(tensors_of(config, ""));
  formats.add_native();
  const auto bytes = [&](const std::string& name, DType dtype, int threads) {
    const Model model = open_model(name);
    const auto backend = make_cpu_backend({threads, Simd::kBest});
    const StageWeights w = load_stage(*backend, *model.weights, config, {0, config.n_layer - 1}, dtype, {});
    std::string all;
    const auto add = [&](const Buffer& storage) {
      all.append(static_cast<const char*>(storage.data()), storage.bytes());
    };
    add(w.token_embedding.storage);
    add(w.position_storage);
    for (const BlockWeights& block : w.blocks) {
      for (const Matrix* matrix : {&block.qkv, &block.proj, &block.fc, &block.out}) add(matrix->storage);
      add(block.qkv_bias.storage);
    }
    CHECK(w.bytes == backend->bytes_allocated() - make_cpu_backend({threads, Simd::kBest})->bytes_allocated());
    return all;
  };
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt8}) {
    const std::string expected = bytes(formats.names.front(), dtype, 1);
    for (const int threads : {1, 3}) {
      CHECK(bytes(formats.name() + "/panels.h5", dtype, threads) == expected);
      if (dtype == DType::kInt8) CHECK(bytes(formats.name() + "/int8.h5", dtype, threads) == expected);
    }
  }
}

TEST_CASE("packed matrices stay in a mapped file where the dtype is the file's, with the bytes that loading gives") {
  const ModelConfig config = small_config();
  Formats formats(tensors_of(config, ""));
  formats.add_native();
  const BlockRange blocks{1, config.n_layer - 1};  // with the head
  for (const std::string& name : formats.names) {
    CHECK(open_model(name).weights->map() == (name.ends_with("panels.h5") || name.ends_with("int8.h5")));
  }
  for (const char* file : {"/panels.h5", "/int8.h5"}) {
    const Model model = open_model(formats.name() + file);
    const Model mapped = open_model(formats.name() + file);
    REQUIRE(mapped.weights->map());
    for (const int threads : {1, 3}) {
      const auto backend = make_cpu_backend({threads, Simd::kBest});
      const std::int64_t own = backend->bytes_allocated();
      const StageWeights want = load_stage(*backend, *model.weights, config, blocks, model.dtype, {});
      CHECK(want.mapped == nullptr);
      const std::int64_t loaded = backend->bytes_allocated() - own;
      const std::int64_t read_before = mapped.weights->bytes_read();
      const StageWeights got = load_stage(*backend, *mapped.weights, config, blocks, model.dtype, {});
      CHECK(got.mapped == mapped.weights.get());
      CHECK(got.bytes == want.bytes);
      CHECK(mapped.weights->bytes_read() - read_before == model.weights->bytes_read() / (threads == 1 ? 1 : 2));
      std::int64_t in_file = 0;
      const auto expect_same = [&](const Matrix& a, const Matrix& b, TensorRole role, std::int32_t block) {
        REQUIRE(a.storage.bytes() == b.storage.bytes());
        CHECK(std::memcmp(a.storage.data(), b.storage.data(), b.storage.bytes()) == 0);
        for (const TensorSpec& spec : tensor_table(config)) {
          if (spec.role != role || (spec.place == TensorPlace::kBlock && spec.block != block)) continue;
          CHECK(a.storage.data() == mapped.weights->mapped_panels(spec).data());
        }
        in_file += static_cast<std::int64_t>(a.storage.bytes());
      };
      expect_same(got.head(), want.head(), TensorRole::kTokenEmbedding, 0);
      for (std::size_t i = 0; i < got.blocks.size(); ++i) {
        const auto block = static_cast<std::int32_t>(i) + blocks.first;
        expect_same(got.blocks[i].qkv, want.blocks[i].qkv, TensorRole::kQkvWeight, block);
        expect_same(got.blocks[i].proj, want.blocks[i].proj, TensorRole::kProjWeight, block);
        expect_same(got.blocks[i].fc, want.blocks[i].fc, TensorRole::kFcWeight, block);
        expect_same(got.blocks[i].out, want.blocks[i].out, TensorRole::kOutWeight, block);
      }
      CHECK(backend->bytes_allocated() - own == 2 * loaded - in_file);
    }
    // Backends with a layout of their own, and other dtypes, take copies.
    const auto reference = make_reference_backend();
    CHECK(load_stage(*reference, *mapped.weights, config, blocks, model.dtype, {}).mapped == nullptr);
    if (model.dtype == DType::kInt8) continue;
    const auto backend = make_cpu_backend({1, Simd::kBest});
    CHECK(load_stage(*backend, *mapped.weights, config, blocks, DType::kFloat16, {}).mapped == nullptr);
  }
}

TEST_CASE("damage in a mapped file is found while loading, and a change from then on") {
  const ModelConfig config = small_config();
  Formats formats(tensors_of(config, ""));
  formats.add_native("panels.h5", {});
  const std::string& path = formats.names.back();
  Model model = open_model(path);
  REQUIRE(model.weights->map());
  const auto load_mapped = [&] {
    const auto backend = make_cpu_backend({2, Simd::kBest});
    load_stage(*backend, *model.weights, config, {0, config.n_layer - 1}, model.dtype, {});
  };
  CHECK_NOTHROW(load_mapped());
  const std::vector<TensorSpec> table = tensor_table(config);
  const TensorSpec& broken = *std::ranges::find(table, "h.3.mlp.c_fc.weight", &TensorSpec::name);
  const std::string panels(reinterpret_cast<const char*>(model.weights->mapped_panels(broken).data()), 64);
  std::string bytes = bytes_of_file(path);
  bytes[bytes.find(panels) + 9] ^= 4;
  std::this_thread::sleep_for(std::chrono::milliseconds(30));     // file times are as coarse as a tick of the clock
  std::ofstream(path, std::ios::binary | std::ios::in) << bytes;  // over the old ones
  CHECK(contains(message_of<std::runtime_error>(load_mapped), path + ": was changed while weights were used in it"));
  CHECK_THROWS_AS(model.weights->check_mapped(), std::runtime_error);
  model = open_model(path);
  REQUIRE(model.weights->map());
  CHECK(contains(message_of<WeightError>(load_mapped),
                 path + ": tensor /blocks/3/mlp.c_fc.weight: its bytes do not match their checksum"));
}

TEST_CASE("loading takes what loading_bytes says beside the weights, and no budget is passed on the way") {
  const ModelConfig config = small_config();
  Formats formats(tensors_of(config, ""));
  formats.add_native();
  std::vector<std::string> names = formats.names;
  names.push_back("synthetic:gpt2,n_layer=4,n_embd=384,n_head=6,vocab_size=9000,n_positions=3000,dtype=bfloat16");
  for (const std::string& name : names) {
    const Model model = open_model(name);
    for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt8}) {
      if (model.dtype == DType::kInt8 && dtype != DType::kInt8) continue;
      for (const BlockRange blocks : {BlockRange{0, model.config.n_layer - 1}, BlockRange{1, 2}}) {
        CAPTURE(name);
        CAPTURE(name_of(dtype));
        CpuOptions options{2, Simd::kBest};
        const std::int64_t own = make_cpu_backend(options)->bytes_allocated();
        const auto layout = cpu_layout(options.threads);
        const std::int64_t weights =
            stage_weight_bytes(model.config, blocks, device_layout(*layout, model.config, dtype, DType::kFloat32));
        const std::int64_t beside = loading_bytes(*model.weights, model.config, blocks, dtype, *layout);
        options.budget_bytes = own + weights + beside;
        const auto backend = make_cpu_backend(options);
        const StageWeights loaded = load_stage(*backend, *model.weights, model.config, blocks, dtype, {});
        CHECK(backend->bytes_allocated() == own + weights);
        options.budget_bytes = own + weights - 1;  // an error, not a wait
        const auto small = make_cpu_backend(options);
        CHECK_THROWS_AS(load_stage(*small, *model.weights, model.config, blocks, dtype, {}), DeviceError);
      }
    }
  }
}

TEST_CASE("loading reports its progress on the calling thread up to the whole, and ends when the report throws") {
  const ModelConfig config = small_config();
  Formats formats(tensors_of(config, ""));
  formats.add_native();
  for (const std::string& name : formats.names) {
    const Model model = open_model(name);
    const auto backend = make_cpu_backend({3, Simd::kBest});
    const auto load_with = [&](const std::function<void(std::int64_t, std::int64_t)>& progress) {
      load_stage(*backend, *model.weights, config, {0, config.n_layer - 1}, model.dtype, progress);
    };
    std::int64_t last = 0;
    std::int64_t calls = 0;
    load_with([&, here = std::this_thread::get_id()](std::int64_t done, std::int64_t total) {
      CHECK(std::this_thread::get_id() == here);
      CHECK(done >= last);
      CHECK(done <= total);
      last = done;
      ++calls;
    });
    CHECK(last == model.weights->bytes_read());
    for (const std::int64_t at : {std::int64_t{1}, calls / 2, calls}) {
      std::int64_t call = 0;
      CHECK_THROWS_WITH_AS(load_with([&](std::int64_t, std::int64_t) {
                             if (++call == at) throw std::runtime_error("enough");
                           }),
                           "enough", std::runtime_error);
    }
  }
}
