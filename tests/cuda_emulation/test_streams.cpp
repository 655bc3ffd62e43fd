// Streams and events: late work shows missing waits; what waits runs what it needs and nothing else.
#include <cuda_runtime.h>

#include <thread>

#include "kernels/cuda/launch.cuh"
#include "tests/cuda_emulation/fixture.hpp"

using namespace stagecoach;
using namespace stagecoach::cuda_emulation;

namespace {

__global__ void set(int* x, int value) {
  *x = value;
}
__global__ void add(int* x, const int* y) {
  *x += *y;
}

struct Stream {
  explicit Stream(unsigned flags = cudaStreamNonBlocking) {
    REQUIRE(cudaStreamCreateWithFlags(&handle, flags) == cudaSuccess);
  }
  ~Stream() { cudaStreamDestroy(handle); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  cudaStream_t handle = nullptr;
};
struct Event {
  Event() { REQUIRE(cudaEventCreateWithFlags(&handle, cudaEventDefault) == cudaSuccess); }
  ~Event() { cudaEventDestroy(handle); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  cudaEvent_t handle = nullptr;
};

int* pinned_int(int value) {
  void* memory = nullptr;
  REQUIRE(cudaMallocHost(&memory, sizeof(int)) == cudaSuccess);
  return new (memory) int(value);
}

// Sets x in one stream and adds it to y in another, with or without a wait; y begins as 1.
int pass_on(bool wait, const Stream& first, const Stream& second) {
  const DeviceArray<int> x(std::vector<int>{5}), y(std::vector<int>{1});
  const Event event;
  cuda::launch(first.handle, {1, 1}, set, x.data(), 20);
  REQUIRE(cudaEventRecord(event.handle, first.handle) == cudaSuccess);
  if (wait) REQUIRE(cudaStreamWaitEvent(second.handle, event.handle) == cudaSuccess);
  cuda::launch(second.handle, {1, 1}, add, y.data(), x.data());
  REQUIRE(cudaStreamSynchronize(second.handle) == cudaSuccess);
  return y.read()[0];
}

}  // namespace

TEST_CASE("a missing event wait shows when work runs late") {
  const FreshMachine fresh;
  const Stream first, second;
  CHECK(pass_on(true, first, second) == 21);
  CHECK(pass_on(false, first, second) == 6);
  mutate({.drop_waits = 1});
  CHECK(pass_on(true, first, second) == 6);
  CHECK(pass_on(true, first, second) == 21);
  mutate({.drop_waits = -1});
  CHECK(pass_on(true, first, second) == 6);
  CHECK(pass_on(true, first, second) == 6);
  mutate({});
  schedule(Timing::kImmediate, Order::kForward);
  CHECK(pass_on(false, first, second) == 21);
}

TEST_CASE("a wait means the record that was the latest when it was called") {
  const FreshMachine fresh;
  const Stream first, second;
  const DeviceArray<int> x(std::vector<int>{5}), y(std::vector<int>{0}), z(std::vector<int>{0});
  {
    const Event event;
    CHECK(cudaStreamWaitEvent(second.handle, event.handle) == cudaSuccess);  // never recorded: nothing to wait for
    cuda::launch(first.handle, {1, 1}, set, x.data(), 1);
    cudaEventRecord(event.handle, first.handle);
    cudaStreamWaitEvent(second.handle, event.handle);
    cuda::launch(second.handle, {1, 1}, add, y.data(), x.data());
    cuda::launch(first.handle, {1, 1}, set, x.data(), 2);
    cudaEventRecord(event.handle, first.handle);
    cudaStreamWaitEvent(second.handle, event.handle);
    cuda::launch(second.handle, {1, 1}, add, z.data(), x.data());
  }  // destroyed while recorded and waited for
  REQUIRE(cudaStreamSynchronize(second.handle) == cudaSuccess);
  CHECK(y.read()[0] == 1);
  CHECK(z.read()[0] == 2);
}

TEST_CASE("queries run one operation each, and what it needs") {
  const FreshMachine fresh;
  const Stream first, second;
  const DeviceArray<int> x(std::vector<int>{5});
  const Event middle, end;
  CHECK(cudaEventQuery(end.handle) == cudaSuccess);
  cuda::launch(first.handle, {1, 1}, set, x.data(), 1);
  cudaEventRecord(middle.handle, first.handle);
  cudaStreamWaitEvent(second.handle, middle.handle);
  cuda::launch(second.handle, {1, 1}, set, x.data(), 2);
  cudaEventRecord(end.handle, second.handle);
  CHECK(cudaStreamQuery(second.handle) == cudaErrorNotReady);  // the wait, and all of `first`
  CHECK(cudaGetLastError() == cudaErrorNotReady);
  CHECK(cudaStreamQuery(first.handle) == cudaSuccess);
  CHECK(cudaEventQuery(middle.handle) == cudaSuccess);
  CHECK(cudaEventQuery(end.handle) == cudaErrorNotReady);
  CHECK(cudaEventQuery(end.handle) == cudaErrorNotReady);
  CHECK(cudaEventQuery(end.handle) == cudaSuccess);
  CHECK(cudaStreamQuery(second.handle) == cudaSuccess);
  CHECK(x.read()[0] == 2);
  float milliseconds = -1;
  CHECK(cudaEventElapsedTime(&milliseconds, middle.handle, end.handle) == cudaSuccess);
  CHECK((milliseconds >= 0 && milliseconds < 60000));
}

TEST_CASE("the default stream is ordered with blocking streams, not with others") {
  const FreshMachine fresh;
  const Stream blocking(cudaStreamDefault), other;
  const DeviceArray<int> x(std::vector<int>{0}), y(std::vector<int>{0}), z(std::vector<int>{0});
  cuda::launch(blocking.handle, {1, 1}, set, x.data(), 3);
  cuda::launch(nullptr, {1, 1}, add, y.data(), x.data());          // y = 3
  cuda::launch(blocking.handle, {1, 1}, add, x.data(), y.data());  // x = 6
  cuda::launch(other.handle, {1, 1}, add, z.data(), x.data());
  REQUIRE(cudaStreamSynchronize(other.handle) == cudaSuccess);  // ran before all of them
  REQUIRE(cudaStreamSynchronize(blocking.handle) == cudaSuccess);
  CHECK(y.read()[0] == 3);
  CHECK(x.read()[0] == 6);
  CHECK(z.read()[0] == 0);
  cuda::launch(blocking.handle, {1, 1}, set, x.data(), 4);
  CHECK(cudaStreamSynchronize(nullptr) == cudaSuccess);
  CHECK(cudaStreamQuery(blocking.handle) == cudaSuccess);
}

TEST_CASE("when copies read and write: pageable memory at the call, pinned memory when they run") {
  const FreshMachine fresh;
  const Stream stream;
  const DeviceArray<int> x(1), y(1);
  int pageable = 1;
  int* const pinned = pinned_int(1);
  cudaMemcpyAsync(x.data(), &pageable, sizeof(int), cudaMemcpyHostToDevice, stream.handle);
  cudaMemcpyAsync(y.data(), pinned, sizeof(int), cudaMemcpyHostToDevice, stream.handle);
  pageable = *pinned = 2;
  REQUIRE(cudaStreamSynchronize(stream.handle) == cudaSuccess);
  CHECK(x.read()[0] == 1);
  CHECK(y.read()[0] == 2);
  cuda::launch(stream.handle, {1, 1}, set, x.data(), 7);
  *pinned = 0;
  cudaMemcpyAsync(pinned, x.data(), sizeof(int), cudaMemcpyDeviceToHost, stream.handle);
  CHECK(*pinned == 0);
  REQUIRE(cudaStreamSynchronize(stream.handle) == cudaSuccess);
  CHECK(*pinned == 7);
  cuda::launch(stream.handle, {1, 1}, set, x.data(), 8);
  cudaMemcpyAsync(&pageable, x.data(), sizeof(int), cudaMemcpyDeviceToHost, stream.handle);
  CHECK(pageable == 8);
  // A synchronous copy does not wait for streams that do not block, nor do they for it.
  cuda::launch(stream.handle, {1, 1}, set, x.data(), 9);
  CHECK(cudaMemcpy(&pageable, x.data(), sizeof(int), cudaMemcpyDeviceToHost) == cudaSuccess);
  CHECK(pageable == 8);
  CHECK(cudaFreeHost(pinned) == cudaSuccess);
}

TEST_CASE("work of a destroyed stream still runs; cudaFree waits for the device") {
  const FreshMachine fresh;
  const DeviceArray<int> y(std::vector<int>{0});
  {
    const DeviceArray<int> x(std::vector<int>{4});
    const Stream stream;
    cuda::launch(stream.handle, {1, 1}, add, y.data(), x.data());
    CHECK(live().streams == 1);
  }
  CHECK(live().streams == 0);
  CHECK(y.read()[0] == 4);
}

TEST_CASE("host threads share the machine: each with its own stream and current device") {
  const FreshMachine fresh({.devices = 2});
  std::vector<std::thread> threads;
  std::vector<int> results(4, -1);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([t, &results] {
      cudaSetDevice(t % 2);
      cudaStream_t stream = nullptr;
      int* x = nullptr;
      cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
      cudaMalloc(&x, 2 * sizeof(int));
      cudaMemsetAsync(x, 0, 2 * sizeof(int), stream);
      for (int i = 1; i <= 50; ++i) {
        cuda::launch(stream, {1, 1}, set, x + 1, i);
        cuda::launch(stream, {1, 1}, add, x, x + 1);
        if (i % 10 == t) {
          while (cudaStreamQuery(stream) == cudaErrorNotReady) {
          }
        }
      }
      cudaMemcpyAsync(&results[static_cast<std::size_t>(t)], x, sizeof(int), cudaMemcpyDeviceToHost, stream);
      cudaFree(x);
      cudaStreamDestroy(stream);
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(results == std::vector<int>(4, 50 * 51 / 2));
  CHECK(live() == Live{});
}
