// Device memory and copies: limits, bounds, kinds, garbage; devices; injected failures; leaks.
#include <cuda_runtime.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>

#include <sys/wait.h>
#include <unistd.h>

#include "kernels/backend.hpp"
#include "kernels/cuda/check.hpp"
#include "kernels/cuda/launch.cuh"
#include "tests/cuda_emulation/fixture.hpp"

using namespace stagecoach;
using namespace stagecoach::cuda_emulation;

namespace {

__global__ void write_at(char* x, int i) {
  x[i] = 1;
}

// True when `body` ends a child process by a signal or a sanitizer's report.
bool dies(const std::function<void()>& body) {
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    close(STDOUT_FILENO);
    close(STDERR_FILENO);
    std::signal(SIGSEGV, SIG_DFL);
    body();
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return !WIFEXITED(status) || WEXITSTATUS(status) != 0;
}

}  // namespace

TEST_CASE("the host cannot touch device memory") {
  const FreshMachine fresh;
  const DeviceArray<char> x(100);
  cuda::launch(nullptr, {1, 1}, write_at, x.data(), 5);
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  CHECK(dies([&] { *static_cast<volatile char*>(x.data()) = 1; }));
  CHECK(dies([&] { static_cast<void>(*static_cast<volatile char*>(x.data())); }));
  CHECK(x.read()[5] == 1);
  CHECK(x.read()[4] == static_cast<char>(0xFF));
}

TEST_CASE("a kernel that writes behind an allocation is found") {
  const FreshMachine fresh;
  const DeviceArray<char> x(100), y(100);
#if defined(__SANITIZE_ADDRESS__)
  CHECK(dies([&] {
    cuda::launch(nullptr, {1, 1}, write_at, x.data(), 100);
    cudaDeviceSynchronize();
  }));
#else
  cuda::launch(nullptr, {1, 1}, write_at, x.data(), 100);
  CHECK(cudaDeviceSynchronize() == cudaErrorLaunchFailure);
  CHECK(last_fault().find("behind the allocation") != std::string::npos);
#endif
}

TEST_CASE("memory has a limit, and what is freed can be had again") {
  const FreshMachine fresh({.memory_bytes = 1 << 20});
  std::size_t free = 0, total = 0;
  CHECK(cudaMemGetInfo(&free, &total) == cudaSuccess);
  CHECK((free == 1 << 20 && total == 1 << 20));
  for (int round = 0; round < 5; ++round) {
    std::vector<void*> all;
    for (;;) {
      void* p = nullptr;
      const cudaError_t result = cudaMalloc(&p, 100'000);
      if (result != cudaSuccess) {
        CHECK(result == cudaErrorMemoryAllocation);
        CHECK(p == nullptr);
        break;
      }
      CHECK(reinterpret_cast<std::uintptr_t>(p) % 256 == 0);
      all.push_back(p);
    }
    CHECK(all.size() == 10);
    CHECK(live().device_allocations == 10);
    CHECK(live().device_bytes == 1'000'000);
    std::swap(all[3], all[8]);
    for (void* p : all) CHECK(cudaFree(p) == cudaSuccess);
    CHECK(cudaMemGetInfo(&free, &total) == cudaSuccess);
    CHECK(free == 1 << 20);
  }
  CHECK(cudaFree(nullptr) == cudaSuccess);
  CHECK(cudaGetLastError() == cudaErrorMemoryAllocation);
  CHECK(cudaGetLastError() == cudaSuccess);
}

TEST_CASE("copies stay inside allocations of the right kind") {
  const FreshMachine fresh({.devices = 2});
  const DeviceArray<char> x(1000), y(1000);
  std::vector<char> host(2000, 7);
  const auto copy = [](void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
    const cudaError_t result = cudaMemcpyAsync(to, from, bytes, kind);
    if (result != cudaSuccess) CHECK(cudaGetLastError() == result);
    return result;
  };
  CHECK(copy(x.data(), host.data(), 1000, cudaMemcpyHostToDevice) == cudaSuccess);
  CHECK(copy(x.data() + 999, host.data(), 1, cudaMemcpyHostToDevice) == cudaSuccess);
  CHECK(copy(x.data(), host.data(), 1001, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
  CHECK(copy(x.data() + 1, host.data(), 1000, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
  CHECK(copy(x.data() - 1, host.data(), 1, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
  CHECK(copy(x.data(), host.data(), 1000, cudaMemcpyDeviceToDevice) == cudaErrorInvalidValue);
  CHECK(copy(host.data(), host.data() + 1000, 1000, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
  CHECK(copy(y.data(), x.data(), 1000, cudaMemcpyDeviceToDevice) == cudaSuccess);
  CHECK(copy(host.data() + 1000, y.data(), 1000, cudaMemcpyDefault) == cudaSuccess);
  CHECK(copy(x.data(), nullptr, 0, cudaMemcpyHostToDevice) == cudaSuccess);
  CHECK(cudaMemset(x.data(), 1, 1001) == cudaErrorInvalidValue);
  CHECK(cudaMemset(host.data(), 1, 10) == cudaErrorInvalidValue);
  REQUIRE(cudaSetDevice(1) == cudaSuccess);
  const DeviceArray<char> z(1000);
  CHECK(copy(z.data(), x.data(), 1000, cudaMemcpyDeviceToDevice) == cudaSuccess);
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
  CHECK(z.read() == std::vector<char>(1000, 7));
  CHECK(cudaSetDevice(2) == cudaErrorInvalidDevice);
  REQUIRE(cudaSetDevice(0) == cudaSuccess);
  CHECK(cudaFree(x.data() + 1) == cudaErrorInvalidValue);
  CHECK(cudaFree(host.data()) == cudaErrorInvalidValue);
}

TEST_CASE("copies of rows") {
  const FreshMachine fresh;
  std::vector<char> host(60), back(60, 0);
  for (std::size_t i = 0; i < host.size(); ++i) host[i] = static_cast<char>(i);
  const DeviceArray<char> x(35);
  // Six rows of 5 bytes, 10 apart on the host and 6 apart on the device.
  CHECK(cudaMemcpy2DAsync(x.data(), 6, host.data(), 10, 5, 6, cudaMemcpyHostToDevice) == cudaSuccess);
  CHECK(cudaMemcpy2DAsync(back.data(), 10, x.data(), 6, 5, 6, cudaMemcpyDeviceToHost) == cudaSuccess);
  for (std::size_t i = 0; i < host.size(); ++i) CHECK(back[i] == (i % 10 < 5 ? host[i] : 0));
  CHECK(cudaMemcpy2DAsync(x.data(), 7, host.data(), 10, 5, 6, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
  CHECK(cudaMemcpy2DAsync(x.data(), 4, host.data(), 10, 5, 6, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
}

TEST_CASE("what the machine says of itself; machines without a driver or a device") {
  {
    const FreshMachine fresh({.devices = 3});
    int count = 0;
    cudaDeviceProp properties;
    char id[32];
    CHECK(cudaGetDeviceCount(&count) == cudaSuccess);
    CHECK(count == 3);
    CHECK(cudaGetDeviceProperties(&properties, 2) == cudaSuccess);
    CHECK(std::string(properties.name) == "Emulated device");
    CHECK((properties.major == 9 && properties.multiProcessorCount == 4));
    CHECK(cudaDeviceGetPCIBusId(id, sizeof(id), 2) == cudaSuccess);
    CHECK(std::string(id) == "0000:12:00.0");
    CHECK(properties.pciBusID == 0x12);
    CHECK(cudaGetDeviceProperties(&properties, 3) == cudaErrorInvalidDevice);
    int shared = 0;
    CHECK(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0) == cudaSuccess);
    CHECK(shared == 227 * 1024);
  }
  int count = -1;
  {
    const FreshMachine fresh({.devices = 0});
    CHECK(cudaGetDeviceCount(&count) == cudaErrorNoDevice);
  }
  const FreshMachine fresh({.driver = false});
  CHECK(cudaGetDeviceCount(&count) == cudaErrorInsufficientDriver);
  CHECK_THROWS_WITH_AS(cuda::check(cudaGetDeviceCount(&count)), doctest::Contains("driver version is insufficient"),
                       DeviceError);
}

TEST_CASE("every call can be made to fail; nothing is left behind; a sticky error stays") {
  // Allocates, copies, launches and releases, with the return codes looked at.
  const auto work = [] {
    struct Owner {
      void* memory = nullptr;
      void* host = nullptr;
      cudaStream_t stream = nullptr;
      cudaEvent_t event = nullptr;
      ~Owner() {
        if (event != nullptr) cudaEventDestroy(event);
        if (stream != nullptr) cudaStreamDestroy(stream);
        if (host != nullptr) cudaFreeHost(host);
        if (memory != nullptr) cudaFree(memory);
      }
    };
    Owner o;
    cuda::check(cudaMalloc(&o.memory, 100));
    cuda::check(cudaMallocHost(&o.host, 100));
    cuda::check(cudaStreamCreateWithFlags(&o.stream, cudaStreamNonBlocking));
    cuda::check(cudaEventCreateWithFlags(&o.event, cudaEventDisableTiming));
    cuda::check(cudaMemcpyAsync(o.memory, o.host, 100, cudaMemcpyHostToDevice, o.stream));
    cuda::launch(o.stream, {1, 1}, write_at, static_cast<char*>(o.memory), 3);
    cuda::check(cudaEventRecord(o.event, o.stream));
    cuda::check(cudaEventSynchronize(o.event));
  };
  std::uint64_t calls_of_work = 0;
  {
    const FreshMachine fresh;
    work();
    calls_of_work = calls();
    CHECK(calls_of_work == 12);
  }
  for (const bool sticky : {false, true}) {
    for (std::uint64_t n = 1; n <= calls_of_work; ++n) {
      const FreshMachine fresh;
      fail_call(n, cudaErrorUnknown, sticky);
      if (n <= 8) CHECK_THROWS_WITH_AS(work(), doctest::Contains("cudaErrorUnknown"), DeviceError);
      if (n > 8) CHECK_NOTHROW(work());  // destructors
      CHECK(!failed_call().empty());
      CHECK(live() == Live{});
      CHECK(cudaDeviceSynchronize() == (sticky ? cudaErrorUnknown : cudaSuccess));
    }
  }
  const FreshMachine fresh;
  fail_call(calls_of_work + 1, cudaErrorUnknown);
  work();
  CHECK(failed_call().empty());
  fail_call(0, cudaErrorUnknown);
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
}
