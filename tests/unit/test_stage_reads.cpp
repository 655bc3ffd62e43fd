// Each stage reads its own tensors and nothing else, and finds broken values in them: for every file format.
#include <doctest/doctest.h>

#include <cmath>
#include <functional>
#include <limits>
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
