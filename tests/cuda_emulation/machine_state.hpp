// The emulated machine behind the runtime's and cuBLASLt's calls: devices, handles, queued work, errors, and what
// emulation.hpp steers. One per process, under one mutex.
#pragma once

#include "tests/cuda_emulation/host_api.hpp"

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "tests/cuda_emulation/block.hpp"
#include "tests/cuda_emulation/device_memory.hpp"
#include "tests/cuda_emulation/emulation.hpp"
#include "tests/cuda_emulation/streams.hpp"

namespace stagecoach::cuda_emulation {

// Device work as it is queued, once or with every launch of a graph. `device` and `also`: see Machine::enqueue.
struct Work {
  int device = 0;
  std::function<cudaError_t()> run;
  int also = -1;
};
// Of a stream, between cudaStreamBeginCapture and cudaStreamEndCapture.
struct Capture {
  std::thread::id thread;
  bool relaxed = false;  // calls that are unsafe meanwhile are the caller's business
  bool invalid = false;
  std::vector<Work> work;
};

}  // namespace stagecoach::cuda_emulation

struct CUstream_st {
  int device;
  std::uint64_t id;
  std::optional<stagecoach::cuda_emulation::Capture> capture;
};
struct CUgraph_st {
  int device;
  std::vector<stagecoach::cuda_emulation::Work> work;
};
struct CUgraphExec_st {
  int device;
  std::uint64_t number;
  std::vector<stagecoach::cuda_emulation::Work> work;
  void* memory;  // of its device, as real ones take some
};
struct CUevent_st {
  int device;
  bool timing;
  std::optional<stagecoach::cuda_emulation::Place> record;  // the latest
  std::chrono::steady_clock::time_point time;               // when that ran
};

namespace stagecoach::cuda_emulation {

inline constexpr std::size_t kSharedBytes = 48 * 1024;        // dynamic, without asking
inline constexpr std::size_t kSharedBytesOptIn = 227 * 1024;  // with cudaFuncSetAttribute
inline constexpr int kMaxThreads = 1024;

struct Device {
  explicit Device(std::size_t memory_bytes) : memory(memory_bytes) {}
  DeviceMemory memory;
  std::uint64_t default_stream = 0;
  cudaError_t sticky = cudaSuccess;                   // after a fault every call fails
  std::map<const void*, std::size_t> shared_allowed;  // by kernel
};

class Machine {
 public:
  Machine() { reset({}); }
  void reset(const Options& new_options);
  Live live() const;

  // Queues work of a device; runs it at once where timing says so. While `run` runs, that device's memory is open
  // (and that of `also`, for copies between devices). `ready`: see Streams::enqueue.
  Place enqueue(std::uint64_t stream, int device, std::function<cudaError_t()> run, std::vector<Place> after = {},
                int also = -1, std::function<bool()> ready = {});
  cudaError_t run_kernel(const Launch& launch);
  // Queues work of a stream that is not capturing, or adds it to what the stream captures.
  cudaError_t submit(std::uint64_t stream, Work work);
  // The capture of the stream; null when there is none.
  Capture* capture_of(std::uint64_t stream);
  // For calls that must not come between the beginning and the end of a capture of this thread: makes those invalid and
  // returns the error. `stream`: 0, or the one that the call is about, whose capture forbids it to all threads.
  cudaError_t refuse_in_capture(std::uint64_t stream = 0);

  // The device whose address it is, or -1.
  int device_of(const void* pointer) const;
  bool device_range(const void* pointer, std::size_t bytes) const;
  bool pinned(const void* pointer, std::size_t bytes) const;

  // Fills what the handle stands for; false when there is no such stream.
  bool find_stream(cudaStream_t handle, std::uint64_t& id, int& device) const;

  std::mutex mutex;
  Options options;
  Mutations mutations;
  std::vector<std::unique_ptr<Device>> devices;
  Streams streams;
  std::map<cudaStream_t, std::unique_ptr<CUstream_st>> stream_handles;
  std::map<cudaEvent_t, std::unique_ptr<CUevent_st>> event_handles;
  std::map<cudaGraph_t, std::unique_ptr<CUgraph_st>> graphs;
  std::map<cudaGraphExec_t, std::unique_ptr<CUgraphExec_st>> graph_execs;
  std::map<const void*, std::size_t> pinned_memory;
  std::map<const void*, std::unique_ptr<void, void (*)(void*)>> cublas_objects;
  Runner runner;
  Random random{1};
  std::uint64_t calls = 0, launches = 0, generation = 0, captured = 0, graph_launches = 0, graphs_made = 0;
  std::uint64_t fail_at = 0;  // number of the call that fails; 0 none
  int fail_with = 0;
  bool fail_sticky = false, failed_in_capture = false;
  std::string failed_call, last_fault;
};

Machine& machine();
// For device code: the machine that runs it.
Runner& running_kernel();

// The calling host thread's.
int current_device(const Machine& m);
void set_current_device(const Machine& m, int device);
cudaError_t last_error(Machine& m, bool clear);

// What every counted call does first, with the mutex held: counts it; the error to return instead of doing anything.
cudaError_t begin_call(Machine& m, const char* name);
// Notes the result for cudaGetLastError.
cudaError_t finish_call(Machine& m, cudaError_t result);

enum class Kind { kUses, kReleases };  // calls that release something do so even when they fail
template <Kind kKind = Kind::kUses, typename Body>
cudaError_t counted_call(const char* name, Body body) {
  Machine& m = machine();
  const std::lock_guard lock(m.mutex);
  const cudaError_t early = begin_call(m, name);
  if (kKind == Kind::kUses && early != cudaSuccess) return finish_call(m, early);
  const cudaError_t result = body(m);
  return finish_call(m, early != cudaSuccess ? early : result);
}

}  // namespace stagecoach::cuda_emulation
