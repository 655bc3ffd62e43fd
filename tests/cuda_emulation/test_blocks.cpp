// Blocks: barriers, warp functions, orders, and the faults they find.
#include <cuda_runtime.h>

#include <cstdint>
#include <ctime>
#include <numeric>
#include <string>

#include "kernels/backend.hpp"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/machine.cuh"
#include "tests/cuda_emulation/fixture.hpp"

using namespace stagecoach;
using namespace stagecoach::cuda_emulation;

namespace {

constexpr unsigned kFull = 0xFFFFFFFFu;
const Order kOrders[] = {Order::kForward, Order::kBackward, Order::kShuffled};

__global__ void write_indices(uint3* threads, uint3* blocks) {
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned i = block * blockDim.x * blockDim.y * blockDim.z + thread;
  threads[i] = threadIdx;
  blocks[i] = blockIdx;
}

// out[i] = sum of the block's x[j] for j <= i; barriers only.
template <bool kBarriers>
__global__ void prefix_sums(const unsigned* x, unsigned* out) {
  __shared__ unsigned sums[1024];
  const unsigned i = threadIdx.x;
  sums[i] = x[blockIdx.x * blockDim.x + i];
  if (kBarriers) __syncthreads();
  for (unsigned step = 1; step < blockDim.x; step *= 2) {
    const unsigned left = i >= step ? sums[i - step] : 0;
    if (kBarriers) __syncthreads();
    sums[i] += left;
    if (kBarriers) __syncthreads();
  }
  out[blockIdx.x * blockDim.x + i] = sums[i];
}

// The sum of each warp, three ways.
__global__ void warp_sums(const int* x, int* by_xor, int* by_down, int* by_reduce) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  int sum = x[i];
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kFull, sum, step);
  by_xor[i] = sum;
  int down = x[i];
  for (unsigned step = 16; step > 0; step /= 2) down += __shfl_down_sync(kFull, down, step);
  by_down[i] = __shfl_sync(kFull, down, 0);
  by_reduce[i] = __reduce_add_sync(kFull, x[i]);
}

// Neighbours exchange through shared memory.
template <bool kBarriers>
__global__ void swap_in_warp(int* out) {
  __shared__ int values[32];
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (kBarriers) __syncwarp();
  out[threadIdx.x] = values[threadIdx.x ^ 1];
}

__global__ void shuffle_kinds(int* out) {
  const int lane = static_cast<int>(threadIdx.x);
  out[0 * 32 + lane] = __shfl_sync(kFull, lane, 3, 8);
  out[1 * 32 + lane] = __shfl_sync(kFull, lane, lane + 1);
  out[2 * 32 + lane] = __shfl_up_sync(kFull, lane, 2, 16);
  out[3 * 32 + lane] = __shfl_down_sync(kFull, lane, 5, 8);
  out[4 * 32 + lane] = __shfl_xor_sync(kFull, lane, 8, 8);
  out[5 * 32 + lane] = static_cast<int>(__ballot_sync(kFull, lane % 3 == 0));
  out[6 * 32 + lane] =
      __any_sync(kFull, lane == 31) + 2 * __all_sync(kFull, lane < 32) + 4 * __all_sync(kFull, lane > 0);
  const unsigned half = lane < 16 ? 0xFFFFu : 0xFFFF0000u;
  out[7 * 32 + lane] = __reduce_max_sync(half, lane);
}

__global__ void votes_of_block(int* out) {
  const int i = static_cast<int>(threadIdx.x);
  const int count = __syncthreads_count(i % 2);
  const int any = __syncthreads_or(i == 5);
  const int all = __syncthreads_and(i != 5);
  out[i] = count * 4 + any * 2 + all;
}

__global__ void some_return_early(int* out) {
  if (threadIdx.x % 3 == 0) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void barrier_for_some(int) {
  if (threadIdx.x < 40) __syncthreads();
  if (threadIdx.x >= 40) __syncwarp();
  if (threadIdx.x == 50) return;
  __syncwarp();
}
__global__ void half_a_warp_shuffles(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_xor_sync(kFull, 1, 1);
}
__global__ void masks_differ(int* out) {
  out[threadIdx.x] = __shfl_xor_sync(threadIdx.x == 7 ? kFull : kFull - 1 + (threadIdx.x == 0), 1, 1);
}
__global__ void own_lane_not_in_mask(int* out) {
  out[threadIdx.x] = __shfl_xor_sync(0xFFFFu, 1, 1);
}
__global__ void different_functions(int* out) {
  if (threadIdx.x < 16) __syncwarp();
  if (threadIdx.x >= 16) out[threadIdx.x] = __any_sync(kFull, 1);
}
__global__ void shared_overrun(int bytes) {
  cuda::shared_memory()[bytes] = 1;
}
__global__ void read_shared(unsigned char* out) {
  out[threadIdx.x] = cuda::shared_memory()[threadIdx.x];
}

std::string fault_of(void (*kernel)(int*), unsigned threads) {
  const FreshMachine fresh;
  {
    const DeviceArray<int> out(1024);
    cuda::launch(nullptr, {1, threads}, kernel, out.data());
    CHECK(cudaDeviceSynchronize() == cudaErrorLaunchFailure);
    CHECK(cudaDeviceSynchronize() == cudaErrorLaunchFailure);
    CHECK(cudaGetLastError() == cudaErrorLaunchFailure);
  }
  CHECK(live() == Live{});
  return last_fault();
}

template <typename T>
std::vector<T> counting(std::size_t count, T first = 0) {
  std::vector<T> values(count);
  std::iota(values.begin(), values.end(), first);
  return values;
}

}  // namespace

TEST_CASE("every thread of every block runs once, with its own indices") {
  for (const Order order : kOrders) {
    const FreshMachine fresh({.order = order});
    const DeviceArray<uint3> threads(3 * 2 * 2 * 5 * 4 * 3), blocks(3 * 2 * 2 * 5 * 4 * 3);
    cuda::launch(nullptr, {{3, 2, 2}, {5, 4, 3}}, write_indices, threads.data(), blocks.data());
    const auto got_threads = threads.read(), got_blocks = blocks.read();
    bool good = true;
    for (unsigned i = 0; i < got_threads.size(); ++i) {
      const unsigned t = i % 60, b = i / 60;
      const uint3 thread = got_threads[i], block = got_blocks[i];
      good = good && thread.x == t % 5 && thread.y == t / 5 % 4 && thread.z == t / 20;
      good = good && block.x == b % 3 && block.y == b / 3 % 2 && block.z == b / 6;
    }
    CHECK(good);
  }
}

TEST_CASE("barriers order a block's threads; without them some order shows it") {
  for (const unsigned size : {1u, 31u, 32u, 33u, 256u, 1000u, 1024u}) {
    const auto x = counting<unsigned>(3 * size, 1);
    std::vector<unsigned> expected(x.size());
    for (std::size_t b = 0; b < 3; ++b) {
      std::partial_sum(x.begin() + b * size, x.begin() + (b + 1) * size, expected.begin() + b * size);
    }
    int wrong = 0;
    for (const Order order : kOrders) {
      const FreshMachine fresh({.order = order, .seed = size});
      const DeviceArray<unsigned> in(x), out(x.size());
      cuda::launch(nullptr, {3, size}, prefix_sums<true>, in.data(), out.data());
      CHECK(out.read() == expected);
      cuda::launch(nullptr, {3, size}, prefix_sums<false>, in.data(), out.data());
      wrong += out.read() != expected;
      mutate({.no_barriers = true});
      cuda::launch(nullptr, {3, size}, prefix_sums<true>, in.data(), out.data());
      if (order == Order::kShuffled && size > 1) CHECK(out.read() != expected);
    }
    CHECK(wrong >= (size > 1 ? 2 : 0));
  }
}

TEST_CASE("shuffles and reductions of a warp") {
  for (const Order order : kOrders) {
    const FreshMachine fresh({.order = order});
    const auto x = counting<int>(2 * 96);
    const DeviceArray<int> in(x), by_xor(x.size()), by_down(x.size()), by_reduce(x.size());
    cuda::launch(nullptr, {2, 96}, warp_sums, in.data(), by_xor.data(), by_down.data(), by_reduce.data());
    std::vector<int> expected(x.size());
    for (std::size_t i = 0; i < x.size(); ++i) expected[i] = static_cast<int>(i / 32 * 32 * 32 + 31 * 16);
    CHECK(by_xor.read() == expected);
    CHECK(by_down.read() == expected);
    CHECK(by_reduce.read() == expected);
  }
}

TEST_CASE("shuffles within parts of a warp, votes, masks") {
  const FreshMachine fresh;
  const DeviceArray<int> out(8 * 32);
  cuda::launch(nullptr, {1, 32}, shuffle_kinds, out.data());
  const auto got = out.read();
  int ballot = 0;
  for (int lane = 0; lane < 32; lane += 3) ballot |= 1 << lane;
  for (int lane = 0; lane < 32; ++lane) {
    const auto at = [&](int row) { return got[static_cast<std::size_t>(row * 32 + lane)]; };
    CHECK(at(0) == lane / 8 * 8 + 3);
    CHECK(at(1) == (lane + 1) % 32);
    CHECK(at(2) == (lane % 16 >= 2 ? lane - 2 : lane));
    CHECK(at(3) == (lane % 8 < 3 ? lane + 5 : lane));
    CHECK(at(4) == (lane % 16 >= 8 ? lane - 8 : lane));  // a later part is out of reach, an earlier one is not
    CHECK(at(5) == ballot);
    CHECK(at(6) == 3);
    CHECK(at(7) == (lane < 16 ? 15 : 31));
  }
}

TEST_CASE("__syncwarp orders the lanes of a warp; without it some order shows it") {
  int wrong = 0;
  for (const Order order : kOrders) {
    const FreshMachine fresh({.order = order});
    std::vector<int> expected(32);
    for (int i = 0; i < 32; ++i) expected[static_cast<std::size_t>(i)] = i ^ 1;
    const DeviceArray<int> out(32);
    cuda::launch(nullptr, {1, 32}, swap_in_warp<false>, out.data());
    wrong += out.read() != expected;
    cuda::launch(nullptr, {1, 32}, swap_in_warp<true>, out.data());
    CHECK(out.read() == expected);
  }
  CHECK(wrong > 0);
}

TEST_CASE("votes of a block; threads that have returned do not hold a barrier up") {
  const FreshMachine fresh;
  const DeviceArray<int> out(100);
  cuda::launch(nullptr, {1, 100}, votes_of_block, out.data());
  CHECK(out.read() == std::vector<int>(100, 50 * 4 + 2));
  cuda::launch(nullptr, {1, 100}, some_return_early, out.data());
  const auto got = out.read();
  CHECK(std::accumulate(got.begin(), got.end(), 0) == 34 * (50 * 4 + 2) + 66);
}

TEST_CASE("barriers and warp functions that threads miss fail the launch and everything after it") {
  CHECK(
      fault_of(half_a_warp_shuffles, 32).find("cannot go on: 0 threads wait at __syncthreads, 16 in warp functions") !=
      std::string::npos);
  CHECK(fault_of(masks_differ, 32).find("masks") != std::string::npos);
  CHECK(fault_of(own_lane_not_in_mask, 32).find("leaves it out") != std::string::npos);
  CHECK(fault_of(different_functions, 32).find("different warp functions") != std::string::npos);
  const FreshMachine fresh;
  cuda::launch(nullptr, {2, 64}, barrier_for_some, 0);
  CHECK(cudaDeviceSynchronize() == cudaErrorLaunchFailure);
  CHECK(last_fault().find("40 threads wait at __syncthreads, 24 in warp functions") != std::string::npos);
  CHECK_THROWS_AS(cuda::launch(nullptr, {2, 64}, barrier_for_some, 0), DeviceError);
}

TEST_CASE("dynamic shared memory: NaNs at first, exactly as much as asked for, limits") {
  const FreshMachine fresh;
  const DeviceArray<unsigned char> out(64);
  cuda::launch(nullptr, {1, 64, 64}, read_shared, out.data());
  CHECK(out.read() == std::vector<unsigned char>(64, 0xFF));
  cuda::launch(nullptr, {1, 1, 48 * 1024}, shared_overrun, 0);
  CHECK_THROWS_AS(cuda::launch(nullptr, {1, 1, 48 * 1024 + 1}, shared_overrun, 0), DeviceError);
  cuda::allow_shared_bytes(shared_overrun, 227 * 1024);
  cuda::launch(nullptr, {1, 1, 227 * 1024}, shared_overrun, 0);
  CHECK_THROWS_AS(cuda::allow_shared_bytes(shared_overrun, 227 * 1024 + 1), DeviceError);
  CHECK_THROWS_AS(cuda::launch(nullptr, {1, 1025}, shared_overrun, 0), DeviceError);
  CHECK_THROWS_AS(cuda::launch(nullptr, {1, {1, 0, 1}}, shared_overrun, 0), DeviceError);
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
#if !defined(__SANITIZE_ADDRESS__)  // which would report it at once
  cuda::launch(nullptr, {1, 1, 100}, shared_overrun, 100);
  CHECK(cudaDeviceSynchronize() == cudaErrorLaunchFailure);
  CHECK(last_fault().find("dynamic shared memory") != std::string::npos);
#endif
}

TEST_CASE("a mutation leaves the last block of every second launch out") {
  const FreshMachine fresh({.order = Order::kForward});
  mutate({.cut_every = 2});
  const DeviceArray<uint3> threads(64), blocks(64);
  for (const unsigned last : {3u, kFull}) {
    REQUIRE(cudaMemset(blocks.data(), 0xFF, blocks.bytes()) == cudaSuccess);
    cuda::launch(nullptr, {4, 16}, write_indices, threads.data(), blocks.data());
    CHECK(blocks.read()[63].x == last);
  }
}

TEST_CASE("speed: 256 threads with 20 barriers") {
  const FreshMachine fresh;
  const auto x = counting<int>(256);
  const DeviceArray<int> in(x), out(200 * 256);
  const auto many_barriers = +[](int* result) {
    int value = 0;
    for (int i = 0; i < 20; ++i) {
      value += i;
      __syncthreads();
    }
    result[blockIdx.x * blockDim.x + threadIdx.x] = value;
  };
  for (const Order order : kOrders) {
    schedule(Timing::kLate, order);
    const auto start = std::clock();
    cuda::launch(nullptr, {200, 256}, many_barriers, out.data());
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    const double took_us = 1e6 * static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
    MESSAGE("order " << static_cast<int>(order) << ": " << took_us / 200 << " us per block");
  }
}
