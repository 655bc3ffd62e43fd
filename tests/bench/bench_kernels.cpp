// Speed of the CPU backend's operations on GPT-2 XL shapes, as ratios to ceilings measured in the same run.
//
//   bench_kernels [--threads N] [--repeat N] [--rows 1,2,4,...] [--dtypes float32,float16,bfloat16,int8]
//   [--no-head]
//
// Ceilings: reading 1 GiB on all threads (one row is bound by it), fused multiply-adds between registers
// (many rows). Every repetition measures ceilings and all cases in turn, so that a noisy machine disturbs
// them alike; the table shows medians over repetitions, ratios being taken within a repetition. The matrices
// of a block exceed any L3 cache.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/backend.hpp"

#include "tests/bench/ceilings.hpp"

namespace bench {
namespace {

using namespace stagecoach;

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0.0 : values[values.size() / 2];
}

struct Options {
  int threads = 2;
  int repeat = 5;
  std::vector<std::int64_t> rows = {1, 2, 4, 8, 16, 32, 128, 512};
  std::vector<DType> dtypes = {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt8};
  bool head = true;
};

double seconds(const std::function<void()>& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

struct Case {
  std::string name;
  double bytes = 0.0;  // read at least
  double flops = 0.0;
  std::function<void()> body;
  std::vector<double> gigabytes, gigaflops, of_bandwidth, of_peak;
};

// The four matrices of some blocks, enough of them to exceed the caches, or the LM head.
struct Weights {
  std::string name;
  std::vector<Matrix> matrices;
  double bytes = 0.0;
  double elements = 0.0;

  void add(Backend& backend, std::int64_t in, std::int64_t out, DType dtype) {
    Matrix m = backend.make_matrix(in, out, dtype);
    std::vector<float> rows(static_cast<std::size_t>(kInt8Group * out));
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(i % 17) * 0.01F - 0.08F;
    for (std::int64_t k = 0; k < in; k += kInt8Group) {
      const std::int64_t count = std::min(kInt8Group, in - k);
      backend.load_rows(m, WeightLayout::kInOut, k, make_tensor(rows.data(), DType::kFloat32, count, out));
    }
    bytes += static_cast<double>(backend.matrix_bytes(in, out, dtype));
    elements += static_cast<double>(in * out);
    matrices.push_back(std::move(m));
  }
};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string_view key = argv[i];
    if (key == "--no-head") {
      options.head = false;
      continue;
    }
    const std::string value = i + 1 < argc ? argv[++i] : "";
    if (key == "--threads") options.threads = std::stoi(value);
    if (key == "--repeat") options.repeat = std::stoi(value);
    if (key == "--rows") {
      options.rows.clear();
      for (std::size_t at = 0; at < value.size();
           at = value.find(',', at) == std::string::npos ? value.size() : value.find(',', at) + 1) {
        options.rows.push_back(std::stoll(value.substr(at)));
      }
    }
    if (key == "--dtypes") {
      const std::string list = "," + value + ",";
      std::erase_if(options.dtypes,
                    [&](DType d) { return list.find(fmt::format(",{},", name_of(d))) == std::string::npos; });
    }
  }
  return options;
}

std::vector<Weights> make_weights(Backend& backend, const Options& options) {
  std::vector<Weights> sets;
  for (const DType dtype : options.dtypes) {
    Weights block;
    block.name = fmt::format("block {}", name_of(dtype));
    for (int copy = 0; copy < (dtype == DType::kFloat32 ? 1 : dtype == DType::kInt8 ? 4 : 2); ++copy) {
      block.add(backend, 1600, 4800, dtype);
      block.add(backend, 1600, 1600, dtype);
      block.add(backend, 1600, 6400, dtype);
      block.add(backend, 6400, 1600, dtype);
    }
    sets.push_back(std::move(block));
    if (!options.head) continue;
    Weights head;
    head.name = fmt::format("head {}", name_of(dtype));
    head.add(backend, 1600, 50257, dtype);
    sets.push_back(std::move(head));
  }
  return sets;
}

double best(const std::vector<double>& values) {
  return *std::max_element(values.begin(), values.end());
}

// Beside medians the best of all repetitions over the best ceiling: what is left when neighbours on the machine are
// quiet.
void print_table(const std::vector<Case>& cases, double best_bandwidth, double best_peak) {
  fmt::print("{:<28}{:>10}{:>12}{:>8}{:>12}{:>10}{:>8}\n", "", "GB/s", "of read", "best", "GFLOP/s", "of peak", "best");
  for (const Case& c : cases) {
    fmt::print("{:<28}{:>10.1f}{:>12.2f}{:>8.2f}{:>12.0f}{:>10.2f}{:>8.2f}\n", c.name, median(c.gigabytes),
               median(c.of_bandwidth), best(c.gigabytes) / best_bandwidth, median(c.gigaflops), median(c.of_peak),
               best(c.gigaflops) / best_peak);
  }
}

void run(const Options& options) {
  const auto backend = make_cpu_backend({options.threads, Simd::kBest});
  fmt::print("{}\n", backend->name());
  const std::int64_t most_rows = *std::max_element(options.rows.begin(), options.rows.end());
  const Buffer x = backend->allocate(most_rows * 6400 * 4);
  const Buffer y = backend->allocate(most_rows * 50257 * 4);
  for (std::int64_t i = 0; i < most_rows * 6400; ++i) {
    static_cast<float*>(x.data())[i] = static_cast<float>(i % 13) * 0.1F - 0.6F;
  }
  const std::vector<Weights> sets = make_weights(*backend, options);
  std::vector<Case> cases;
  for (const Weights& weights : sets) {
    for (const std::int64_t rows : options.rows) {
      if (weights.name.starts_with("head") && rows > 32) continue;
      cases.push_back({fmt::format("{} rows {}", weights.name, rows),
                       weights.bytes,
                       2.0 * weights.elements * static_cast<double>(rows),
                       [&weights, &backend, &x, &y, rows] {
                         for (const Matrix& m : weights.matrices) {
                           backend->linear(make_tensor(x.data(), DType::kFloat32, rows, m.in), m, {}, {},
                                           make_tensor(y.data(), DType::kFloat32, rows, m.out));
                         }
                       },
                       {},
                       {},
                       {},
                       {}});
    }
  }
  stagecoach::bench::Ceilings ceilings(options.threads);
  std::vector<double> bandwidths, peaks, single_bandwidths, single_peaks;
  for (int repeat = 0; repeat < options.repeat; ++repeat) {
    single_bandwidths.push_back(ceilings.read_bytes_per_s(1) * 1e-9);
    single_peaks.push_back(ceilings.multiply_add_flops_per_s(1) * 1e-9);
    bandwidths.push_back(ceilings.read_bytes_per_s() * 1e-9);
    peaks.push_back(ceilings.multiply_add_flops_per_s() * 1e-9);
    for (Case& c : cases) {
      const double s = seconds(c.body);
      c.gigabytes.push_back(c.bytes * 1e-9 / s);
      c.gigaflops.push_back(c.flops * 1e-9 / s);
      c.of_bandwidth.push_back(c.gigabytes.back() / bandwidths.back());
      c.of_peak.push_back(c.gigaflops.back() / peaks.back());
    }
  }
  fmt::print("read {:.1f} GB/s (1 thread {:.1f}), fused multiply-add {:.0f} GFLOP/s (1 thread {:.0f})\n",
             median(bandwidths), median(single_bandwidths), median(peaks), median(single_peaks));
  print_table(cases, best(bandwidths), best(peaks));
}

}  // namespace
}  // namespace bench

int main(int argc, char** argv) {
  bench::run(bench::parse(argc, argv));
  return 0;
}
