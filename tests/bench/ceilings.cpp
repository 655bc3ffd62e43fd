// The loops are compiled for every instruction set that Highway knows and chosen at run time.
#include "tests/bench/ceilings.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <new>
#include <numeric>
#include <thread>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/bench/ceilings.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace stagecoach::bench::HWY_NAMESPACE {
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

}  // namespace stagecoach::bench::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace stagecoach::bench {
HWY_EXPORT(multiply_add);
HWY_EXPORT(read_all);
namespace {

constexpr std::int64_t kReadFloats = std::int64_t{1} << 28;
constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::int64_t kRounds = 6'000'000;

// Seconds that `body(thread)` takes on all threads together.
double timed(int threads, const std::function<void(int)>& body) {
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back(body, t);
  body(0);
  for (std::thread& other : others) other.join();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

Ceilings::Ceilings(int threads)
    : threads_(threads),
      memory_(static_cast<float*>(std::aligned_alloc(kHugePage, kReadFloats * sizeof(float)))),
      sinks_(static_cast<std::size_t>(threads) * 64, 0.999F) {
  if (!memory_) throw std::bad_alloc();
  madvise(memory_.get(), kReadFloats * sizeof(float), MADV_HUGEPAGE);
  std::fill_n(memory_.get(), kReadFloats, 1.0F);
}

double Ceilings::read_bytes_per_s(int threads) {
  if (threads == 0) threads = threads_;
  const std::int64_t part = kReadFloats / threads;
  const double s =
      timed(threads, [&](int t) { sink(t)[2] += HWY_DYNAMIC_DISPATCH(read_all)(memory_.get() + t * part, part); });
  return static_cast<double>(kReadFloats) * 4.0 / s;
}

double Ceilings::multiply_add_flops_per_s(int threads) {
  if (threads == 0) threads = threads_;
  std::vector<double> flops(static_cast<std::size_t>(threads));
  const double s = timed(threads, [&](int t) {
    flops[static_cast<std::size_t>(t)] = HWY_DYNAMIC_DISPATCH(multiply_add)(kRounds, sink(t));
  });
  return std::accumulate(flops.begin(), flops.end(), 0.0) / s;
}

}  // namespace stagecoach::bench
#endif
