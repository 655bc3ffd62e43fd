// Graphs: what a capture holds back, what a launch queues, and what a capture does not allow.
#include <cuda_runtime.h>

#include <thread>

#include "kernels/backend.hpp"
#include "kernels/cuda/launch.cuh"
#include "tests/cuda_emulation/fixture.hpp"

using namespace stagecoach;
using namespace stagecoach::cuda_emulation;

namespace {

__global__ void add(int* x, const int* y) {
  *x += *y;
}
__global__ void twice(int* x) {
  *x *= 2;
}

constexpr auto kThreadLocal = cudaStreamCaptureModeThreadLocal;

struct Stream {
  Stream() { REQUIRE(cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking) == cudaSuccess); }
  ~Stream() { cudaStreamDestroy(handle); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  cudaStream_t handle = nullptr;
};

// x = (x + y) * 2, captured.
struct Captured {
  Captured(const Stream& stream, int* x, const int* y) {
    REQUIRE(cudaStreamBeginCapture(stream.handle, kThreadLocal) == cudaSuccess);
    cuda::launch(stream.handle, {1, 1}, add, x, y);
    cuda::launch(stream.handle, {1, 1}, twice, x);
    cudaGraph_t graph = nullptr;
    REQUIRE(cudaStreamEndCapture(stream.handle, &graph) == cudaSuccess);
    REQUIRE(cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess);
    CHECK(cudaGraphDestroy(graph) == cudaSuccess);
  }
  ~Captured() { cudaGraphExecDestroy(exec); }
  Captured(const Captured&) = delete;
  Captured& operator=(const Captured&) = delete;
  cudaGraphExec_t exec = nullptr;
};

// What a capture ends with after `call` was made during it.
template <typename Call>
cudaError_t end_of_capture_with(const Stream& stream, Call call) {
  REQUIRE(cudaStreamBeginCapture(stream.handle, kThreadLocal) == cudaSuccess);
  call();
  cudaGraph_t graph = nullptr;
  const cudaError_t end = cudaStreamEndCapture(stream.handle, &graph);
  CHECK((graph != nullptr) == (end == cudaSuccess));
  if (graph != nullptr) cudaGraphDestroy(graph);
  return end;
}

}  // namespace

TEST_CASE("captured work runs at launches only, on what memory holds then") {
  for (const Timing timing : {Timing::kImmediate, Timing::kLate}) {
    const FreshMachine fresh({.timing = timing});
    const Stream stream;
    const DeviceArray<int> x(std::vector<int>{1}), y(std::vector<int>{10});
    {
      const Captured captured(stream, x.data(), y.data());
      CHECK(x.read()[0] == 1);
      CHECK(cudaGraphLaunch(captured.exec, stream.handle) == cudaSuccess);
      CHECK(cudaGraphLaunch(captured.exec, stream.handle) == cudaSuccess);
      CHECK(x.read()[0] == 64);
      const int other = 3;
      REQUIRE(cudaMemcpy(y.data(), &other, sizeof(int), cudaMemcpyHostToDevice) == cudaSuccess);
      REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
      CHECK(cudaGraphUpload(captured.exec, stream.handle) == cudaSuccess);
      CHECK(cudaGraphLaunch(captured.exec, stream.handle) == cudaSuccess);
    }  // what was launched still runs
    CHECK(x.read()[0] == 134);
    CHECK(live().graphs == 0);
    CHECK(graph_launches() == 3);
  }
}

TEST_CASE("copies from pinned memory are captured by address, from pageable memory not at all") {
  const FreshMachine fresh;
  const Stream stream;
  const DeviceArray<int> x(std::vector<int>{0});
  int* pinned = nullptr;
  REQUIRE(cudaMallocHost(&pinned, sizeof(int)) == cudaSuccess);
  *pinned = 5;
  REQUIRE(cudaStreamBeginCapture(stream.handle, kThreadLocal) == cudaSuccess);
  REQUIRE(cudaMemcpyAsync(x.data(), pinned, sizeof(int), cudaMemcpyHostToDevice, stream.handle) == cudaSuccess);
  REQUIRE(cudaMemsetAsync(x.data(), 0, 1, stream.handle) == cudaSuccess);
  cudaGraph_t graph = nullptr;
  REQUIRE(cudaStreamEndCapture(stream.handle, &graph) == cudaSuccess);
  cudaGraphExec_t exec = nullptr;
  REQUIRE(cudaGraphInstantiate(&exec, graph) == cudaSuccess);
  *pinned = 0x0707;
  REQUIRE(cudaGraphLaunch(exec, stream.handle) == cudaSuccess);
  CHECK(x.read()[0] == 0x0700);
  CHECK(live().graphs == 2);
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaFreeHost(pinned);
  int pageable = 1;
  CHECK(end_of_capture_with(stream, [&] {
          CHECK(cudaMemcpyAsync(x.data(), &pageable, sizeof(int), cudaMemcpyHostToDevice, stream.handle) ==
                cudaErrorStreamCaptureUnsupported);
        }) == cudaErrorStreamCaptureInvalidated);
}

TEST_CASE("what a capture does not allow makes it invalid") {
  const FreshMachine fresh;
  const Stream stream, other;
  const DeviceArray<int> x(std::vector<int>{0});
  cudaEvent_t event = nullptr;
  REQUIRE(cudaEventCreateWithFlags(&event, cudaEventDisableTiming) == cudaSuccess);
  REQUIRE(cudaEventRecord(event, other.handle) == cudaSuccess);
  void* memory = nullptr;
  CHECK(end_of_capture_with(stream, [] {}) == cudaSuccess);
  CHECK(end_of_capture_with(stream, [&] { CHECK(cudaSetDevice(0) == cudaSuccess); }) == cudaSuccess);
  const std::vector<std::pair<cudaError_t, std::function<cudaError_t()>>> refused = {
      {cudaErrorStreamCaptureUnsupported, [&] { return cudaStreamSynchronize(stream.handle); }},
      {cudaErrorStreamCaptureUnsupported, [&] { return cudaStreamQuery(stream.handle); }},
      {cudaErrorStreamCaptureUnsupported, [&] { return cudaEventQuery(event); }},
      {cudaErrorStreamCaptureUnsupported, [&] { return cudaEventSynchronize(event); }},
      {cudaErrorStreamCaptureUnsupported, [&] { return cudaDeviceSynchronize(); }},
      {cudaErrorStreamCaptureUnsupported, [&] { return cudaMalloc(&memory, 16); }},
      {cudaErrorStreamCaptureUnsupported, [&] { return cudaMallocHost(&memory, 16); }},
      {cudaErrorStreamCaptureUnsupported, [&] { return cudaFree(x.data()); }},
      {cudaErrorStreamCaptureIsolation, [&] { return cudaStreamWaitEvent(stream.handle, event); }},
      {cudaErrorStreamCaptureUnsupported, [&] { return cudaEventRecord(event, stream.handle); }},
  };
  for (std::size_t i = 0; i < refused.size(); ++i) {
    INFO("call " << i);
    CHECK(end_of_capture_with(stream, [&] { CHECK(refused[i].second() == refused[i].first); }) ==
          cudaErrorStreamCaptureInvalidated);
  }
  const auto launched = end_of_capture_with(stream, [&] {
    CHECK(cudaStreamQuery(stream.handle) == cudaErrorStreamCaptureUnsupported);
    CHECK_THROWS_AS(cuda::launch(stream.handle, {1, 1}, twice, x.data()), DeviceError);
  });
  CHECK(launched == cudaErrorStreamCaptureInvalidated);
  cudaEventDestroy(event);
  // Another thread may do as it likes, but not with this stream.
  CHECK(end_of_capture_with(stream, [&] {
          std::thread([&] { CHECK(cudaStreamSynchronize(other.handle) == cudaSuccess); }).join();
        }) == cudaSuccess);
  CHECK(end_of_capture_with(stream, [&] {
          std::thread([&] { CHECK(cudaStreamQuery(stream.handle) == cudaErrorStreamCaptureUnsupported); }).join();
        }) == cudaErrorStreamCaptureInvalidated);
  CHECK(end_of_capture_with(stream, [&] {
          std::thread([&] {
            cudaGraph_t graph = nullptr;
            CHECK(cudaStreamEndCapture(stream.handle, &graph) == cudaErrorStreamCaptureWrongThread);
          }).join();
        }) == cudaSuccess);
  CHECK(x.read()[0] == 0);
}

TEST_CASE("misused graph calls") {
  const FreshMachine fresh;
  const Stream stream;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  CHECK(cudaStreamBeginCapture(nullptr, kThreadLocal) == cudaErrorStreamCaptureUnsupported);
  CHECK(cudaStreamEndCapture(stream.handle, &graph) == cudaErrorInvalidValue);
  CHECK(cudaGraphInstantiate(&exec, graph) == cudaErrorInvalidValue);
  CHECK(cudaGraphLaunch(exec, stream.handle) == cudaErrorInvalidValue);
  CHECK(cudaGraphDestroy(graph) == cudaErrorInvalidValue);
  CHECK(cudaGraphExecDestroy(exec) == cudaErrorInvalidValue);
  REQUIRE(cudaStreamBeginCapture(stream.handle, kThreadLocal) == cudaSuccess);
  CHECK(cudaStreamBeginCapture(stream.handle, kThreadLocal) == cudaErrorInvalidValue);
  CHECK(cudaStreamEndCapture(stream.handle, &graph) == cudaSuccess);
  CHECK(cudaGraphDestroy(graph) == cudaSuccess);
}

TEST_CASE("instantiated graphs take memory of the device") {
  const FreshMachine fresh({.memory_bytes = 1 << 16});
  const Stream stream;
  const DeviceArray<int> x(1);
  std::vector<cudaGraphExec_t> execs;
  cudaGraph_t graph = nullptr;
  REQUIRE(cudaStreamBeginCapture(stream.handle, kThreadLocal) == cudaSuccess);
  for (int i = 0; i < 20; ++i) cuda::launch(stream.handle, {1, 1}, twice, x.data());
  REQUIRE(cudaStreamEndCapture(stream.handle, &graph) == cudaSuccess);
  cudaError_t result = cudaSuccess;
  while (result == cudaSuccess) {
    cudaGraphExec_t exec = nullptr;
    result = cudaGraphInstantiate(&exec, graph);
    if (result == cudaSuccess) execs.push_back(exec);
    REQUIRE(execs.size() < 100);
  }
  CHECK(result == cudaErrorMemoryAllocation);
  CHECK(execs.size() > 3);
  CHECK(live().graphs == execs.size() + 1);
  for (const cudaGraphExec_t exec : execs) CHECK(cudaGraphExecDestroy(exec) == cudaSuccess);
  CHECK(cudaGraphDestroy(graph) == cudaSuccess);
  CHECK(live().device_allocations == 1);
}

TEST_CASE("a call that fails during a capture makes it invalid; ending it ends it even so") {
  const FreshMachine fresh;
  const Stream stream;
  const DeviceArray<int> x(std::vector<int>{1});
  CHECK(end_of_capture_with(stream, [&] {
          fail_call(1, cudaErrorLaunchOutOfResources);
          CHECK_THROWS_AS(cuda::launch(stream.handle, {1, 1}, twice, x.data()), DeviceError);
        }) == cudaErrorStreamCaptureInvalidated);
  CHECK(failed_in_capture());
  CHECK(end_of_capture_with(stream, [&] { fail_call(1, cudaErrorUnknown); }) == cudaErrorUnknown);
  cuda::launch(stream.handle, {1, 1}, twice, x.data());  // queued as ever
  CHECK(x.read()[0] == 2);
  fail_call(1, cudaErrorUnknown);
  CHECK(cudaStreamQuery(stream.handle) == cudaErrorUnknown);
  CHECK_FALSE(failed_in_capture());
}

TEST_CASE("mistakes with graphs: a forgotten operation, the wrong graph") {
  const FreshMachine fresh;
  const Stream stream;
  const DeviceArray<int> x(std::vector<int>{1}), y(std::vector<int>{10}), z(std::vector<int>{100});
  const Captured first(stream, x.data(), y.data());
  const Captured second(stream, z.data(), y.data());
  mutate({.first_graph = true});
  REQUIRE(cudaGraphLaunch(second.exec, stream.handle) == cudaSuccess);
  CHECK(x.read()[0] == 22);
  CHECK(z.read()[0] == 100);
  mutate({.forget_every = 2});
  const Captured lacking(stream, z.data(), y.data());
  REQUIRE(cudaGraphLaunch(lacking.exec, stream.handle) == cudaSuccess);
  CHECK(z.read()[0] == 110);
}
