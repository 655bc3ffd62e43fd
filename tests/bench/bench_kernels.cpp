// Speed of the CPU backend's operations on GPT-2 XL shapes, as ratios to ceilings measured in the same run.
//
//   bench_kernels [--threads N] [--repeat N] [--rows 1,2,4,...] [--dtypes float32,float16,bfloat16]
//   [--no-head]
//
// Ceilings: reading 1 GiB on all threads (one row is bound by it), fused multiply-adds between registers
// (many rows). Every repetition measures ceilings and all cases in turn, so that a noisy machine disturbs
// them alike; the table shows medians over repetitions, ratios being taken within a repetition. The matrices
// of a block exceed any L3 cache.
#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "kernels/backend.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/bench/bench_kernels.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace bench::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Floating-point operations of `rounds` rounds; 10 independent chains hide the latency of any fused
// multiply-add.
double multiply_add(std::int64_t rounds, float* sink) {
  const hn::CappedTag<float, 16> d;
  constexpr int kChains = 10;
  hn::VFromD<decltype(d)> chain[kChains];
  for (int i = 0; i < kChains; ++i) chain[i] = hn::Set(d, static_cast<float>(i));
  const auto a = hn::Set(d, sink[0]);
  const auto b = hn::Set(d, sink[1]);
  for (std::int64_t r = 0; r < rounds; ++r) {
    for (int i = 0; i < kChains; ++i) chain[i] = hn::MulAdd(chain[i], a, b);
  }
  auto sum = chain[0];
  for (int i = 1; i < kChains; ++i) sum = hn::Add(sum, chain[i]);
  sink[2] += hn::GetLane(sum);
  return 2.0 * kChains * static_cast<double>(hn::Lanes(d)) * static_cast<double>(rounds);
}

float read_all(const float* data, std::int64_t n) {
  const hn::CappedTag<float, 16> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  hn::VFromD<decltype(d)> sum[8];
  for (auto& s : sum) s = hn::Zero(d);
  for (std::int64_t i = 0; i + 8 * lanes <= n; i += 8 * lanes) {
    for (int v = 0; v < 8; ++v) sum[v] = hn::Add(sum[v], hn::LoadU(d, data + i + v * lanes));
  }
  for (int v = 1; v < 8; ++v) sum[0] = hn::Add(sum[0], sum[v]);
  return hn::GetLane(sum[0]);
}

}  // namespace bench::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace bench {
HWY_EXPORT(multiply_add);
HWY_EXPORT(read_all);
namespace {

using namespace stagecoach;

void on_threads(int threads, const std::function<void(int)>& body) {
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back(body, t);
  body(0);
  for (std::thread& other : others) other.join();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0.0 : values[values.size() / 2];
}

struct Options {
  int threads = 2;
  int repeat = 5;
  std::vector<std::int64_t> rows = {1, 2, 4, 8, 16, 32, 128, 512};
  std::vector<DType> dtypes = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
  bool head = true;
  bool cpu_time = false;
};

double now(bool cpu_time) {
  timespec t{};
  clock_gettime(cpu_time ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

double seconds(const Options& options, const std::function<void()>& body) {
  const double begin = now(options.cpu_time);
  body();
  return now(options.cpu_time) - begin;
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
    std::vector<float> row(static_cast<std::size_t>(out));
    for (std::size_t i = 0; i < row.size(); ++i) row[i] = static_cast<float>(i % 17) * 0.01F - 0.08F;
    for (std::int64_t k = 0; k < in; ++k) {
      backend.load_rows(m, WeightLayout::kInOut, k, make_tensor(row.data(), DType::kFloat32, 1, out));
    }
    bytes += static_cast<double>(in * out * size_of(dtype));
    elements += static_cast<double>(in * out);
    matrices.push_back(std::move(m));
  }
};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string_view key = argv[i];
    if (key == "--cpu-time") {
      options.cpu_time = true;
      options.threads = 1;
      continue;
    }
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

// What the machine can do at this moment.
class Ceilings {
 public:
  explicit Ceilings(Backend& backend, const Options& options)
      : options_(options),
        memory_(backend.allocate(kReadFloats * 4)),
        sinks_(static_cast<std::size_t>(options.threads) * 64, 0.999F) {
    std::fill_n(static_cast<float*>(memory_.data()), kReadFloats, 1.0F);
  }

  // GB/s of reading 1 GiB.
  double bandwidth(int threads) {
    const std::int64_t part = kReadFloats / threads;
    const double s = seconds(options_, [&] {
      on_threads(threads, [&](int t) {
        sink(t)[2] +=
            HWY_DYNAMIC_DISPATCH(read_all)(static_cast<const float*>(memory_.data()) + t * part, part);
      });
    });
    return static_cast<double>(kReadFloats) * 4e-9 / s;
  }
  // GFLOP/s between registers.
  double peak(int threads) {
    std::vector<double> flops(static_cast<std::size_t>(threads));
    const double s = seconds(options_, [&] {
      on_threads(threads, [&](int t) {
        flops[static_cast<std::size_t>(t)] = HWY_DYNAMIC_DISPATCH(multiply_add)(6'000'000, sink(t));
      });
    });
    return std::accumulate(flops.begin(), flops.end(), 0.0) * 1e-9 / s;
  }

 private:
  static constexpr std::int64_t kReadFloats = std::int64_t{1} << 28;
  float* sink(int thread) {
    return &sinks_[static_cast<std::size_t>(thread) * 64];
  }  // a cache line each, at least

  const Options& options_;
  Buffer memory_;
  std::vector<float> sinks_;
};

std::vector<Weights> make_weights(Backend& backend, const Options& options) {
  std::vector<Weights> sets;
  for (const DType dtype : options.dtypes) {
    Weights block;
    block.name = fmt::format("block {}", name_of(dtype));
    for (int copy = 0; copy < (dtype == DType::kFloat32 ? 1 : 2); ++copy) {
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

void print_table(const std::vector<Case>& cases) {
  fmt::print("{:<28}{:>10}{:>12}{:>12}{:>10}\n", "", "GB/s", "of read", "GFLOP/s", "of peak");
  for (const Case& c : cases) {
    fmt::print("{:<28}{:>10.1f}{:>12.2f}{:>12.0f}{:>10.2f}\n", c.name, median(c.gigabytes),
               median(c.of_bandwidth), median(c.gigaflops), median(c.of_peak));
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
  Ceilings ceilings(*backend, options);
  std::vector<double> bandwidths, peaks, single_bandwidths, single_peaks;
  for (int repeat = 0; repeat < options.repeat; ++repeat) {
    single_bandwidths.push_back(ceilings.bandwidth(1));
    single_peaks.push_back(ceilings.peak(1));
    bandwidths.push_back(ceilings.bandwidth(options.threads));
    peaks.push_back(ceilings.peak(options.threads));
    for (Case& c : cases) {
      const double s = seconds(options, c.body);
      c.gigabytes.push_back(c.bytes * 1e-9 / s);
      c.gigaflops.push_back(c.flops * 1e-9 / s);
      c.of_bandwidth.push_back(c.gigabytes.back() / bandwidths.back());
      c.of_peak.push_back(c.gigaflops.back() / peaks.back());
    }
  }
  fmt::print("read {:.1f} GB/s (1 thread {:.1f}), fused multiply-add {:.0f} GFLOP/s (1 thread {:.0f})\n",
             median(bandwidths), median(single_bandwidths), median(peaks), median(single_peaks));
  print_table(cases);
}

}  // namespace
}  // namespace bench

int main(int argc, char** argv) {
  bench::run(bench::parse(argc, argv));
  return 0;
}
#endif
