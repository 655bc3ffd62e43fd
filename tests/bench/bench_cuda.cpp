// The CUDA backend's products and attention on GPT-2 XL's shapes, against a copy and a product measured in the same
// run, rounds interleaved, medians: bench_cuda [float16|bfloat16|float32] [rounds].
#include <cuda_runtime.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cuda/check.hpp"
#include "kernels/cuda/cuda_backend.hpp"

using namespace stagecoach;

namespace {

constexpr std::int64_t kEmbed = 1600, kInner = 6400, kHeads = 25, kWidth = 64, kVocab = 50257;
constexpr std::int64_t kCopyBytes = std::int64_t{2} << 30;

// What is timed, and what it does per call: bytes moved or operations.
struct Subject {
  std::string name;
  double work;
  bool bytes;
  std::function<void()> run;
  std::vector<double> rates = {};
};

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

class Shapes {
 public:
  Shapes(Backend& backend, DType dtype) : backend_(backend), dtype_(dtype) {
    for (const auto& [in, out] :
         {std::pair{kEmbed, 3 * kEmbed}, {kEmbed, kEmbed}, {kEmbed, kInner}, {kInner, kEmbed}}) {
      for (int copy = 0; copy < 8; ++copy) blocks_.push_back(matrix(in, out));  // more than a cache holds
    }
    x_ = backend.allocate(kRows * kInner * 4);
    y_ = backend.allocate(kRows * kInner * 4);
    residual_ = backend.allocate(kRows * kEmbed * 4);
  }

  // The products of 8 blocks on `rows` rows.
  void products(std::int64_t rows) {
    for (const Matrix& w : blocks_) {
      const bool adds = w.out == kEmbed;
      const Tensor x = make_tensor(x_.data(), dtype_, rows, w.in);
      const Tensor y = adds ? make_tensor(residual_.data(), DType::kFloat32, rows, w.out)
                            : make_tensor(y_.data(), dtype_, rows, w.out);
      backend_.linear(x, w, {}, {w.out == kInner ? Activation::kGeluTanh : Activation::kNone, adds}, y);
    }
  }
  double weights() const {
    double sum = 0;
    for (const Matrix& w : blocks_) sum += static_cast<double>(w.in * w.out);
    return sum;
  }
  Matrix matrix(std::int64_t in, std::int64_t out) const { return backend_.make_matrix(in, out, dtype_); }

  static constexpr std::int64_t kRows = 8192;

 private:
  Backend& backend_;
  DType dtype_;
  std::vector<Matrix> blocks_;
  Buffer x_, y_, residual_;
};

// `sequences` of `before` positions, to which `rows` more come in every call.
class Attention {
 public:
  Attention(Backend& backend, DType dtype, std::int64_t sequences, std::int64_t before, std::int64_t rows)
      : backend_(backend) {
    const std::int64_t pages_each = (before + rows + kPagePositions - 1) / kPagePositions;
    for (std::int64_t s = 0; s < sequences; ++s) {
      for (std::int64_t r = 0; r < rows; ++r) {
        positions_.push_back(static_cast<std::int32_t>(before + r));
        sequences_.push_back(static_cast<std::int32_t>(s));
      }
    }
    table_.resize(static_cast<std::size_t>(sequences * pages_each));
    std::iota(table_.begin(), table_.end(), 0);
    pages_ = backend.allocate(sequences * pages_each * backend.kv_page_bytes(kHeads, kWidth, DType::kFloat16));
    kv_ = {pages_.data(), DType::kFloat16, sequences * pages_each, kHeads, kWidth};
    const auto count = static_cast<std::int64_t>(positions_.size());
    in_ = backend.allocate(count * 3 * kEmbed * size_of(dtype));
    out_ = backend.allocate(count * kEmbed * size_of(dtype));
    qkv_ = make_tensor(in_.data(), dtype, count, 3 * kEmbed);
    result_ = make_tensor(out_.data(), dtype, count, kEmbed);
    stride_ = pages_each;
  }
  void run() {
    backend_.set_rows({{}, positions_, sequences_, table_, stride_});
    for (int block = 0; block < 8; ++block) backend_.attention(qkv_, kv_, 0.125F, result_);
  }

 private:
  Backend& backend_;
  std::vector<std::int32_t> positions_, sequences_, table_;
  Buffer pages_, in_, out_;
  KvPages kv_;
  Tensor qkv_, result_;
  std::int64_t stride_ = 0;
};

// A decode step of 8 blocks for one sequence of 1,024 positions: what the program does for a token, without embedding
// and LM head.
class Step {
 public:
  Step(Backend& backend, DType dtype) : backend_(backend) {
    for (int b = 0; b < kBlocks; ++b) {
      blocks_.push_back({backend.make_matrix(kEmbed, 3 * kEmbed, dtype), backend.make_matrix(kEmbed, kEmbed, dtype),
                         backend.make_matrix(kEmbed, kInner, dtype), backend.make_matrix(kInner, kEmbed, dtype),
                         backend.allocate(kPages * backend.kv_page_bytes(kHeads, kWidth, DType::kFloat16))});
    }
    memory_ = backend.allocate((2 * kEmbed + 3 * kEmbed + kInner) * 4 + 2 * kEmbed * 4);
    auto* next = static_cast<std::byte*>(memory_.data());
    const auto carve = [&](DType of, std::int64_t cols) {
      return make_tensor(std::exchange(next, next + cols * 4), of, 1, cols);
    };
    x_ = carve(DType::kFloat32, kEmbed);
    narrow_ = carve(dtype, kEmbed);
    qkv_ = carve(dtype, 3 * kEmbed);
    inner_ = carve(dtype, kInner);
    norm_ = {carve(DType::kFloat32, kEmbed), carve(DType::kFloat32, kEmbed), 1e-5F};
  }
  ~Step() { backend_.forget_steps(); }
  Step(const Step&) = delete;
  Step& operator=(const Step&) = delete;

  void run(bool as_graph) {
    std::vector<std::int32_t> table(kPages);
    std::iota(table.begin(), table.end(), 0);
    const std::vector<std::int32_t> position{kPages * kPagePositions - 1}, sequence{0};
    backend_.set_rows({{}, position, sequence, table, kPages});
    const auto operations = [this](const Backend::Progress&) {
      for (const Block& b : blocks_) block(b);
    };
    if (as_graph)
      return backend_.step(
          {1, 0, 0}, [] {}, operations);
    operations([] {});
  }
  double bytes(double element) const {
    return kBlocks * (element * 12 * kEmbed * kEmbed + 2.0 * 2 * kEmbed * kPages * kPagePositions);
  }

 private:
  static constexpr int kBlocks = 8;
  static constexpr std::int32_t kPages = 16;
  struct Block {
    Matrix qkv, proj, fc, out;
    Buffer pages;
  };
  void block(const Block& b) {
    const KvPages kv{b.pages.data(), DType::kFloat16, kPages, kHeads, kWidth};
    backend_.norm_linear(x_, norm_, narrow_, b.qkv, {}, {}, qkv_);
    backend_.attention(qkv_, kv, 0.125F, narrow_);
    backend_.linear(narrow_, b.proj, {}, {Activation::kNone, true}, x_);
    backend_.norm_linear(x_, norm_, narrow_, b.fc, {}, {Activation::kGeluTanh, false}, inner_);
    backend_.linear(inner_, b.out, {}, {Activation::kNone, true}, x_);
  }

  Backend& backend_;
  std::vector<Block> blocks_;
  Buffer memory_;
  Tensor x_, narrow_, qkv_, inner_;
  Backend::Norm norm_;
};

}  // namespace

int main(int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : "float16";
  const DType dtype = name == "float32" ? DType::kFloat32 : name == "bfloat16" ? DType::kBFloat16 : DType::kFloat16;
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 15;
  const std::unique_ptr<Backend> backend = make_cuda_backend({0, std::int64_t{24} << 30, false});
  fmt::print("{}; {}; {} weights, median of {} rounds\n", backend->name(), cuda_versions(), name_of(dtype), rounds);

  const Buffer from = backend->allocate(kCopyBytes), to = backend->allocate(kCopyBytes);
  const Matrix square = backend->make_matrix(8192, 8192, dtype);
  const Buffer a = backend->allocate(std::int64_t{8192} * 8192 * 4),
               b = backend->allocate(std::int64_t{8192} * 8192 * 4);
  const Tensor x = make_tensor(a.data(), dtype, 8192, 8192), y = make_tensor(b.data(), dtype, 8192, 8192);
  Shapes shapes(*backend, dtype);
  const Matrix head = shapes.matrix(kEmbed, kVocab);
  const Buffer picked = backend->allocate(64 * kVocab * 4);
  Attention prefill(*backend, dtype, 8, 0, 1024), decode(*backend, dtype, 32, 1023, 1),
      alone(*backend, dtype, 1, 1023, 1);
  Step step(*backend, dtype);

  const double element = static_cast<double>(size_of(dtype));
  const double keys = 2.0 * kEmbed * 2;  // bytes of a position's keys and values in float16
  std::vector<Subject> subjects;
  subjects.push_back({"copy on the device (read + write)", 2.0 * kCopyBytes, true, [&] {
                        cuda::check(cudaMemcpyAsync(to.data(), from.data(), kCopyBytes, cudaMemcpyDeviceToDevice));
                        cuda::check(cudaDeviceSynchronize());
                      }});
  subjects.push_back(
      {"product 8192 x 8192 x 8192", 2.0 * 8192 * 8192 * 8192, false, [&] { backend->linear(x, square, {}, {}, y); }});
  for (const std::int64_t rows : {1, 4, 8, 16, 32, 64}) {
    subjects.push_back({fmt::format("blocks' products, {} rows, weights read", rows), shapes.weights() * element, true,
                        [&, rows] { shapes.products(rows); }});
  }
  subjects.push_back({"LM head, 1 row, weights read", element * kEmbed * kVocab, true, [&] {
                        backend->linear(make_tensor(a.data(), dtype, 1, kEmbed), head, {}, {},
                                        make_tensor(picked.data(), DType::kFloat32, 1, kVocab));
                      }});
  for (const std::int64_t rows : {256, 1024, 8192}) {
    subjects.push_back({fmt::format("blocks' products, {} rows", rows),
                        2.0 * shapes.weights() * static_cast<double>(rows), false,
                        [&, rows] { shapes.products(rows); }});
  }
  subjects.push_back(
      {"attention, 8 x 1024 new rows", 8.0 * 8 * 4 * kEmbed * (1024.0 * 1025 / 2), false, [&] { prefill.run(); }});
  subjects.push_back(
      {"attention, 32 rows at 1024, keys and values read", 8.0 * 32 * 1024 * keys, true, [&] { decode.run(); }});
  subjects.push_back({"attention, 1 row at 1024, keys and values read", 8.0 * 1024 * keys, true, [&] { alone.run(); }});

  for (const bool as_graph : {false, true}) {
    subjects.push_back({fmt::format("decode step of 8 blocks, {}", as_graph ? "a graph" : "plain launches"),
                        step.bytes(element), true, [&, as_graph] { step.run(as_graph); }});
  }

  for (int round = -3; round < rounds; ++round) {
    for (Subject& s : subjects) {
      backend->synchronize();
      const auto start = std::chrono::steady_clock::now();
      s.run();
      backend->synchronize();
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      if (round >= 0) s.rates.push_back(s.work / seconds);  // the first three warm up: a step's third is replayed
    }
  }
  const double copy = median(subjects[0].rates), product = median(subjects[1].rates);
  for (const Subject& s : subjects) {
    const double rate = median(s.rates);
    fmt::print("{:<52} {:8.1f} {}  {:.2f} of the {}\n", s.name, rate / (s.bytes ? 1e9 : 1e12),
               s.bytes ? "GB/s   " : "TFLOP/s", rate / (s.bytes ? copy : product), s.bytes ? "copy" : "product");
  }
  return 0;
}
