// How fast weights come from a file that is in the page cache: bench_loading MODEL [DTYPE] (a native file, or a
// directory). The best of several rounds, as shares of what plain sequential reads of the same bytes reach:
//   sequential   pread of 8 MiB after 8 MiB into one buffer, as dd reads
//   read_rows    all tensors through WeightSource
//   checked      the same with what loading verifies: the checksums of a native file, and that values are finite (of
//                packed matrices where they are converted)
//   scan alone   the search for values that are not finite, in memory, over as many bytes
//   new memory   as many bytes of it touched for the first time, which the system clears: loading takes that besides
//   load_stage   all of it packed on the CPU backend (one thread)
//   two threads  the same with two
//   two stages   each half of the blocks loaded by a process of its own, side by side
//   mapped       the last three where a packed file, mapped anew each time, is used in place (--map-weights)
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <filesystem>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "kernels/backend.hpp"
#include "kernels/convert.hpp"
#include "kernels/host_memory.hpp"
#include "partition/plan.hpp"
#include "runtime/input_file.hpp"
#include "runtime/packed_tensor.hpp"
#include "runtime/stage_weights.hpp"
#include "runtime/tensor_pieces.hpp"

namespace {

using namespace stagecoach;

constexpr int kRounds = 7;

double seconds(const std::function<void()>& action, const std::function<void()>& before = {}) {
  double best = std::numeric_limits<double>::infinity();
  for (int round = 0; round < kRounds; ++round) {
    if (before) before();
    const auto start = std::chrono::steady_clock::now();
    action();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

std::vector<std::filesystem::path> weight_files(const std::string& name) {
  if (std::filesystem::is_regular_file(name)) return {name};
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(name)) {
    const std::string extension = entry.path().extension().string();
    if (extension == ".safetensors" || extension == ".h5") files.push_back(entry.path());
  }
  return files;
}

std::int64_t read_sequentially(const std::vector<std::filesystem::path>& files, std::span<std::byte> buffer) {
  std::int64_t total = 0;
  for (const auto& path : files) {
    const InputFile file(path);
    for (std::int64_t at = 0; at < file.bytes(); at += kPieceBytes) {
      file.read(at, buffer.first(static_cast<std::size_t>(std::min(kPieceBytes, file.bytes() - at))), "it");
    }
    total += file.bytes();
  }
  return total;
}

// Panels [first, first + count) of a matrix come as `read(first, count)`, as many at a time as the buffer holds.
template <typename Read>
void read_panels(const PackedLayout& layout, std::span<std::byte> buffer, const Read& read) {
  const std::int64_t each = std::max<std::int64_t>(1, static_cast<std::int64_t>(buffer.size()) / layout.panel_bytes());
  for (std::int64_t p = 0; p < layout.panels(); p += each) read(p, std::min(each, layout.panels() - p));
}

void read_rows(const Model& model, std::span<std::byte> buffer) {
  for (const TensorSpec& spec : tensor_table(model.config)) {
    if (model.weights->is_packed(spec)) {
      read_panels(packed_layout_of(spec, model.weights->dtype_of(spec)), buffer,
                  [&](std::int64_t p, std::int64_t count) { model.weights->read_panels(spec, p, count, buffer); });
      continue;
    }
    const std::int64_t row_bytes = spec.cols * size_of(model.weights->dtype_of(spec));
    const std::int64_t rows_each = std::clamp<std::int64_t>(kPieceBytes / row_bytes, 1, spec.rows);
    for (std::int64_t first = 0; first < spec.rows; first += rows_each) {
      const std::int64_t rows = std::min(rows_each, spec.rows - first);
      model.weights->read_rows(spec, first, rows, buffer.first(static_cast<std::size_t>(rows * row_bytes)));
    }
  }
}

void check_all(const Model& model, DType dtype, std::span<std::byte> buffer) {
  TensorReader reader(*model.weights);
  for (const TensorSpec& spec : tensor_table(model.config)) {
    if (!model.weights->is_packed(spec)) {
      reader.read_in_pieces(spec, dtype, [](std::int64_t, Tensor) {});
      continue;
    }
    PackedReader packed(*model.weights, spec, dtype);
    read_panels(packed.layout(), buffer,
                [&](std::int64_t p, std::int64_t count) { packed.read(p, count, buffer.data()); });
    packed.finish();
  }
}

void touch_new_memory(std::int64_t bytes) {
  constexpr std::int64_t kPage = 4096;
  HostMemory memory;
  const Buffer fresh = memory.allocate(bytes);
  for (std::int64_t at = 0; at < bytes; at += kPage) static_cast<volatile std::byte*>(fresh.data())[at] = std::byte{1};
}

void load(const Model& model, BlockRange blocks, DType dtype, int threads = 1) {
  const auto backend = make_cpu_backend({threads, Simd::kBest});
  const StageWeights weights = load_stage(*backend, *model.weights, model.config, blocks, dtype, {});
}

void load_side_by_side(const Model& model, DType dtype) {
  for (const StageSpec& stage : even_split(model.config, 2)) {
    if (::fork() != 0) continue;
    load(model, stage.blocks, dtype);
    ::_exit(0);
  }
  while (::wait(nullptr) > 0) {
  }
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 2) {
    fmt::print(stderr, "usage: bench_loading MODEL [float32|float16|bfloat16|int8]\n");
    return 2;
  }
  const Model model = open_model(argv[1]);
  DType dtype = model.dtype;
  for (const DType each : {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt8}) {
    if (argc > 2 && name_of(each) == argv[2]) dtype = each;
  }
  HostMemory memory;
  const Buffer storage = memory.allocate(kPieceBytes);  // aligned to pages, as dd's and TensorReader's
  const std::span buffer(static_cast<std::byte*>(storage.data()), storage.bytes());
  const std::vector<std::filesystem::path> files = weight_files(argv[1]);
  const std::int64_t bytes = read_sequentially(files, buffer);
  double sequential = 0.0;
  const auto show = [&](const char* what, double took) {
    fmt::print("{:<12} {:7.3f} s  {:6.2f} GB/s  {:.2f} of sequential\n", what, took,
               static_cast<double>(bytes) / took / 1e9, sequential / took);
  };
  fmt::print("{}: {} MB, {} loaded as {}\n", argv[1], bytes / 1000000, name_of(model.dtype), name_of(dtype));
  sequential = seconds([&] { read_sequentially(files, buffer); });
  show("sequential", sequential);
  show("read_rows", seconds([&] { read_rows(model, buffer); }));
  show("checked", seconds([&] { check_all(model, dtype, buffer); }));
  show("scan alone", seconds([&] {
         for (std::int64_t at = 0; at < bytes; at += kPieceBytes) {
           if (first_not_finite(buffer.data(), model.dtype, dtype, kPieceBytes / size_of(model.dtype)) == -2) return;
         }
       }));
  show("new memory", seconds([&] { touch_new_memory(bytes); }));
  const BlockRange all{0, model.config.n_layer - 1};
  show("load_stage", seconds([&] { load(model, all, dtype); }));
  show("two threads", seconds([&] { load(model, all, dtype, 2); }));
  show("two stages", seconds([&] { load_side_by_side(model, dtype); }));
  Model mapped;
  const auto map_again = [&] {
    mapped = open_model(argv[1], ModelParts::kNoTokenizer);
    mapped.weights->map();
  };
  map_again();
  if (dtype != model.dtype || !mapped.weights->map()) return 0;
  show("mapped", seconds([&] { load(mapped, all, dtype); }, map_again));
  show(" two threads", seconds([&] { load(mapped, all, dtype, 2); }, map_again));
  show(" two stages", seconds([&] { load_side_by_side(mapped, dtype); }, map_again));
  return 0;
} catch (const std::exception& error) {
  fmt::print(stderr, "bench_loading: {}\n", error.what());
  return 1;
}
