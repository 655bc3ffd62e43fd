// Matrix fragments, tensor cores and asynchronous copies: kernels/cuda/machine.cuh as the emulation has it.
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/machine.cuh"
#include "tests/cuda_emulation/fixture.hpp"

using namespace stagecoach;
using namespace stagecoach::cuda_emulation;

namespace {

template <bool kTransposed>
__global__ void load_fragments(const std::uint16_t* matrices, std::uint32_t* fragments) {
  auto* const shared = reinterpret_cast<std::uint16_t*>(cuda::shared_memory());
  for (unsigned i = threadIdx.x; i < 256; i += 32) shared[i] = matrices[i];
  __syncthreads();
  std::uint32_t fragment[4];
  if constexpr (kTransposed) {
    cuda::load_matrices_transposed(fragment, shared + 8 * threadIdx.x);
  } else {
    cuda::load_matrices(fragment, shared + 8 * threadIdx.x);
  }
  for (unsigned m = 0; m < 4; ++m) fragments[threadIdx.x * 4 + m] = fragment[m];
}

// d (16, 8) = a (16, depth) * b (depth, 8) in a's order of k, a and b row-major.
template <typename Half>
__global__ void small_product(const Half* a, const Half* b, float* d, int depth) {
  const int g = static_cast<int>(threadIdx.x) / 4, t = static_cast<int>(threadIdx.x) % 4;
  const auto pair = [](Half low, Half high) {
    std::uint16_t bits[2];
    std::memcpy(&bits[0], &low, 2);
    std::memcpy(&bits[1], &high, 2);
    return bits[0] | (static_cast<std::uint32_t>(bits[1]) << 16);
  };
  float c[4] = {};
  for (int k = 0; k < depth; k += 16) {
    const auto a_pair = [&](int row, int column) {
      return pair(a[row * depth + k + column], a[row * depth + k + column + 1]);
    };
    const auto b_pair = [&](int row) { return pair(b[(k + row) * 8 + g], b[(k + row + 1) * 8 + g]); };
    const std::uint32_t as[4] = {a_pair(g, 2 * t), a_pair(g + 8, 2 * t), a_pair(g, 2 * t + 8),
                                 a_pair(g + 8, 2 * t + 8)};
    const std::uint32_t bs[2] = {b_pair(2 * t), b_pair(2 * t + 8)};
    cuda::multiply_add<Half>(c, as, bs);
  }
  for (int i = 0; i < 4; ++i) d[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = c[i];
}

// Copies n * 16 bytes in `stages` groups; every thread then reads its neighbour's.
template <int kStages, bool kWaits>
__global__ void staged_copy(const float4* in, float4* out) {
  auto* const shared = reinterpret_cast<float4*>(cuda::shared_memory());
  for (unsigned s = 0; s < kStages; ++s) {
    const unsigned i = s * blockDim.x + threadIdx.x;
    cuda::copy_async_16(shared + i, in + i, i % 5 != 0);
    cuda::copy_async_commit();
  }
  if (kWaits) cuda::copy_async_wait<1>();  // all but the last
  __syncthreads();
  for (unsigned s = 0; s < kStages; ++s) {
    if (kWaits && s + 1 == kStages) cuda::copy_async_wait<0>();
    if (s + 1 == kStages) __syncthreads();
    const unsigned i = s * blockDim.x + (threadIdx.x + 1) % blockDim.x;
    out[i] = shared[i];
  }
}
__global__ void wait_for_too_few(const float4* in, float* out) {
  auto* const shared = reinterpret_cast<float4*>(cuda::shared_memory());
  cuda::copy_async_16(shared, in, true);
  cuda::copy_async_commit();
  cuda::copy_async_wait<1>();
  *out = shared->x;
}
__global__ void misaligned_copy(const float* in) {
  cuda::copy_async_16(cuda::shared_memory(), in + 1, true);
}
__global__ void misaligned_load(std::uint32_t* out) {
  std::uint32_t fragment[4];
  cuda::load_matrices(fragment, cuda::shared_memory() + 8);
  out[threadIdx.x] = fragment[0];
}

template <typename Half>
void check_products() {
  std::mt19937 random{std::random_device{}()};
  std::uniform_real_distribution<float> uniform(-2.0f, 2.0f);
  for (const int depth : {16, 48}) {
    const auto n = static_cast<std::size_t>(depth);
    std::vector<Half> a(16 * n), b(8 * n);
    for (Half& x : a) x = Half(uniform(random));
    for (Half& x : b) x = Half(uniform(random));
    const DeviceArray<Half> device_a(a), device_b(b);
    const DeviceArray<float> device_d(16 * 8);
    cuda::launch(nullptr, {1, 32}, small_product<Half>, device_a.data(), device_b.data(), device_d.data(), depth);
    const auto d = device_d.read();
    double worst = 0;
    for (std::size_t row = 0; row < 16; ++row) {
      for (std::size_t column = 0; column < 8; ++column) {
        float in_order = 0;
        for (std::size_t k = 0; k < n; ++k) {
          in_order += static_cast<float>(a[row * n + k]) * static_cast<float>(b[k * 8 + column]);
        }
        worst = std::max(worst, std::abs(static_cast<double>(in_order) - static_cast<double>(d[row * 8 + column])));
      }
    }
    CHECK(worst == 0.0);
  }
}

}  // namespace

TEST_CASE("matrix fragments lie as documented, straight and transposed") {
  const FreshMachine fresh;
  std::vector<std::uint16_t> matrices(256);
  for (std::size_t i = 0; i < 256; ++i) matrices[i] = static_cast<std::uint16_t>(1000 + i);
  const DeviceArray<std::uint16_t> in(matrices);
  const DeviceArray<std::uint32_t> straight(128), transposed(128);
  cuda::launch(nullptr, {1, 32, 512}, load_fragments<false>, in.data(), straight.data());
  cuda::launch(nullptr, {1, 32, 512}, load_fragments<true>, in.data(), transposed.data());
  const auto got = straight.read(), got_transposed = transposed.read();
  for (std::size_t lane = 0; lane < 32; ++lane) {
    for (std::size_t m = 0; m < 4; ++m) {
      const std::size_t line = lane / 4, pair = 2 * (lane % 4);
      const auto element = [&](std::size_t row, std::size_t column) {
        return static_cast<std::uint32_t>(matrices[m * 64 + row * 8 + column]);
      };
      CHECK(got[lane * 4 + m] == (element(line, pair) | (element(line, pair + 1) << 16)));
      CHECK(got_transposed[lane * 4 + m] == (element(pair, line) | (element(pair + 1, line) << 16)));
    }
  }
}

TEST_CASE("products of half and bfloat16 matrices") {
  const FreshMachine fresh;
  check_products<__half>();
  check_products<__nv_bfloat16>();
}

TEST_CASE("asynchronous copies land when they are waited for, or at once where asked; without a wait it shows") {
  std::vector<float4> in(3 * 64);
  std::vector<float> expected;
  for (std::size_t i = 0; i < in.size(); ++i) {
    const auto x = static_cast<float>(i + 1);
    in[i] = {x, -x, 2 * x, 0.5f};
    const float4 e = i % 5 != 0 ? in[i] : float4{};
    expected.insert(expected.end(), {e.x, e.y, e.z, e.w});
  }
  const auto equal = [&](const DeviceArray<float4>& out) {
    return std::memcmp(out.read().data(), expected.data(), expected.size() * 4) == 0;
  };
  for (const bool early : {false, true}) {
    const FreshMachine fresh({.early_copies = early});
    const DeviceArray<float4> from(in), to(in.size());
    const std::size_t bytes = in.size() * sizeof(float4);
    cuda::launch(nullptr, {1, 64, bytes}, staged_copy<3, true>, from.data(), to.data());
    CHECK(equal(to));
    cuda::launch(nullptr, {1, 64, bytes}, staged_copy<3, false>, from.data(), to.data());
    CHECK(equal(to) == early);
    mutate({.no_copy_waits = true});
    cuda::launch(nullptr, {1, 64, bytes}, staged_copy<3, true>, from.data(), to.data());
    CHECK(equal(to) == early);
  }
  const FreshMachine fresh;
  const DeviceArray<float4> from(in);
  const DeviceArray<float> to(1);
  cuda::launch(nullptr, {1, 1, 16}, wait_for_too_few, from.data(), to.data());
  CHECK(std::isnan(to.read()[0]));
}

TEST_CASE("misaligned copies and rows are faults") {
  {
    const FreshMachine fresh;
    const DeviceArray<float> in(std::vector<float>(8));
    cuda::launch(nullptr, {1, 32, 64}, misaligned_copy, in.data());
    CHECK(cudaDeviceSynchronize() == cudaErrorLaunchFailure);
    CHECK(last_fault().find("not aligned") != std::string::npos);
  }
  const FreshMachine fresh;
  const DeviceArray<std::uint32_t> out(32);
  cuda::launch(nullptr, {1, 32, 1024}, misaligned_load, out.data());
  CHECK(cudaDeviceSynchronize() == cudaErrorLaunchFailure);
  CHECK(last_fault().find("not aligned") != std::string::npos);
}
