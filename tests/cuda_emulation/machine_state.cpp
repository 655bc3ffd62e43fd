#include "tests/cuda_emulation/machine_state.hpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <utility>

namespace stagecoach::cuda_emulation {
namespace {

struct ThreadState {
  int device = 0;
  cudaError_t last_error = cudaSuccess;
  std::uint64_t generation = 0;
};
thread_local ThreadState of_thread;

// A host thread's state is that of one machine.
ThreadState& thread_state(const Machine& m) {
  if (of_thread.generation != m.generation) of_thread = {.generation = m.generation};
  return of_thread;
}

// For the whole program, which cannot be steered from within: STAGECOACH_EMULATION="devices=2 memory_mib=100 driver=0
// fail=1000 rank=1"; `fail` is fail_call with a broken device, on that rank of an MPI job alone where `rank` is given.
void follow_environment(Machine& m) {
  const char* const text = std::getenv("STAGECOACH_EMULATION");
  if (text == nullptr) return;
  const auto value_of = [text](const std::string& name, std::uint64_t otherwise) -> std::uint64_t {
    const char* const found = std::strstr(text, (name + "=").c_str());
    return found == nullptr ? otherwise : std::strtoull(found + name.size() + 1, nullptr, 10);
  };
  Options options;
  options.devices = static_cast<int>(value_of("devices", 1));
  options.memory_bytes = value_of("memory_mib", options.memory_bytes >> 20) << 20;
  options.driver = value_of("driver", 1) != 0;
  m.reset(options);
  const char* const rank = std::getenv("OMPI_COMM_WORLD_RANK");
  const std::uint64_t own = rank == nullptr ? 0 : std::strtoull(rank, nullptr, 10);
  if (value_of("rank", own) != own) return;
  m.fail_at = value_of("fail", 0);
  m.fail_with = cudaErrorIllegalAddress;
  m.fail_sticky = true;
}

// The runner of the kernel that runs now: one host thread at a time.
Runner* running = nullptr;

}  // namespace

Machine& machine() {
  static Machine the_machine;
  [[maybe_unused]] static const bool followed = (follow_environment(the_machine), true);
  return the_machine;
}

Runner& running_kernel() {
  if (running == nullptr) {
    std::fputs("cuda_emulation: a device function was called outside a kernel\n", stderr);
    std::abort();
  }
  return *running;
}

void Machine::reset(const Options& new_options) {
  options = new_options;
  mutations = {};
  stream_handles.clear();
  event_handles.clear();
  graphs.clear();
  graph_execs.clear();
  for (const auto& [pointer, bytes] : pinned_memory) std::free(const_cast<void*>(pointer));
  pinned_memory.clear();
  cublas_objects.clear();
  streams = {};
  streams.when_stuck([this] {  // whoever called holds the mutex
    mutex.unlock();
    std::this_thread::sleep_for(std::chrono::microseconds(50));
    mutex.lock();
  });
  devices.clear();
  for (int d = 0; d < options.devices; ++d) {
    devices.push_back(std::make_unique<Device>(options.memory_bytes));
    devices.back()->default_stream = streams.create_default(d);
  }
  random = Random(options.seed);
  calls = launches = captured = graph_launches = graphs_made = fail_at = 0;
  failed_in_capture = false;
  ++generation;
  failed_call.clear();
  last_fault.clear();
}

Live Machine::live() const {
  Live live;
  for (const auto& device : devices) {
    live.device_allocations += device->memory.allocations();
    live.device_bytes += device->memory.live_bytes();
  }
  live.pinned_allocations = pinned_memory.size();
  live.streams = stream_handles.size();
  live.events = event_handles.size();
  live.graphs = graphs.size() + graph_execs.size();
  live.cublas_objects = cublas_objects.size();
  return live;
}

Place Machine::enqueue(std::uint64_t stream, int device, std::function<cudaError_t()> run, std::vector<Place> after,
                       int also, std::function<bool()> ready) {
  const auto with_memory = [this, device, also, run = std::move(run)] {
    Device& own = *devices[static_cast<std::size_t>(device)];
    if (own.sticky != cudaSuccess) return;
    own.memory.open();
    if (also >= 0 && also != device) devices[static_cast<std::size_t>(also)]->memory.open();
    own.sticky = run();
    own.memory.close();
    if (also >= 0 && also != device) devices[static_cast<std::size_t>(also)]->memory.close();
  };
  const Place place = streams.enqueue(stream, with_memory, std::move(after), std::move(ready));
  if (options.timing == Timing::kImmediate) streams.try_until(place);
  return place;
}

cudaError_t Machine::submit(std::uint64_t stream, Work work) {
  Capture* const capture = capture_of(stream);
  if (capture == nullptr) {
    const int device = work.device;
    enqueue(stream, device, std::move(work.run), {}, work.also);
    return devices[static_cast<std::size_t>(device)]->sticky;
  }
  if (capture->invalid) return cudaErrorStreamCaptureInvalidated;
  const int every = mutations.forget_every;
  if (every == 0 || ++captured % static_cast<std::uint64_t>(every) != 0) capture->work.push_back(std::move(work));
  return cudaSuccess;
}

Capture* Machine::capture_of(std::uint64_t stream) {
  for (const auto& [handle, state] : stream_handles) {
    if (state->id == stream && state->capture) return &*state->capture;
  }
  return nullptr;
}

cudaError_t Machine::refuse_in_capture(std::uint64_t stream) {
  bool refused = false;
  for (const auto& [handle, state] : stream_handles) {
    if (!state->capture) continue;
    const bool unsafe = state->capture->thread == std::this_thread::get_id() && !state->capture->relaxed;
    if (!unsafe && state->id != stream) continue;
    state->capture->invalid = true;
    refused = true;
  }
  return refused ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}

cudaError_t Machine::run_kernel(const Launch& launch) {
  const bool cut = mutations.cut_every > 0 && ++launches % static_cast<std::uint64_t>(mutations.cut_every) == 0;
  running = &runner;
  std::string fault = runner.run(launch,
                                 {.order = options.order,
                                  .early_copies = options.early_copies,
                                  .no_barriers = mutations.no_barriers,
                                  .no_copy_waits = mutations.no_copy_waits,
                                  .cut_last_block = cut},
                                 random);
  running = nullptr;
  for (const auto& device : devices) {
    if (!fault.empty()) break;
    if (const void* damaged = device->memory.damaged()) {
      char text[96];
      std::snprintf(text, sizeof(text), "a kernel wrote behind the allocation at %p", damaged);
      fault = text;
    }
  }
  if (fault.empty()) return cudaSuccess;
  last_fault = std::move(fault);
  return cudaErrorLaunchFailure;
}

int Machine::device_of(const void* pointer) const {
  for (std::size_t d = 0; d < devices.size(); ++d) {
    if (devices[d]->memory.owns_address(pointer)) return static_cast<int>(d);
  }
  return -1;
}

bool Machine::device_range(const void* pointer, std::size_t bytes) const {
  const int device = device_of(pointer);
  return device >= 0 && devices[static_cast<std::size_t>(device)]->memory.holds(pointer, bytes);
}

bool Machine::pinned(const void* pointer, std::size_t bytes) const {
  auto found = pinned_memory.upper_bound(pointer);
  if (found == pinned_memory.begin()) return false;
  --found;
  const auto inside =
      static_cast<std::size_t>(static_cast<const std::byte*>(pointer) - static_cast<const std::byte*>(found->first));
  return inside <= found->second && bytes <= found->second - inside;
}

bool Machine::find_stream(cudaStream_t handle, std::uint64_t& id, int& device) const {
  if (handle == nullptr || handle == cudaStreamLegacy) {
    device = thread_state(*this).device;
    id = devices[static_cast<std::size_t>(device)]->default_stream;
    return true;
  }
  const auto found = stream_handles.find(handle);
  if (found == stream_handles.end()) return false;
  id = found->second->id;
  device = found->second->device;
  return true;
}

int current_device(const Machine& m) {
  return thread_state(m).device;
}
void set_current_device(const Machine& m, int device) {
  thread_state(m).device = device;
}

cudaError_t begin_call(Machine& m, const char* name) {
  ++m.calls;
  if (m.fail_at == m.calls) {
    m.failed_call = name;
    for (const auto& [handle, stream] : m.stream_handles) {  // a call that fails makes what it would be part of invalid
      if (!stream->capture || stream->capture->thread != std::this_thread::get_id()) continue;
      stream->capture->invalid = true;
      m.failed_in_capture = true;
    }
    const auto device = static_cast<std::size_t>(current_device(m));
    if (m.fail_sticky && device < m.devices.size()) m.devices[device]->sticky = static_cast<cudaError_t>(m.fail_with);
    return static_cast<cudaError_t>(m.fail_with);
  }
  if (!m.options.driver) return cudaErrorInsufficientDriver;
  if (m.devices.empty()) return cudaErrorNoDevice;
  return m.devices[static_cast<std::size_t>(current_device(m))]->sticky;
}

cudaError_t finish_call(Machine& m, cudaError_t result) {
  if (result != cudaSuccess) thread_state(m).last_error = result;
  return result;
}

cudaError_t last_error(Machine& m, bool clear) {
  const cudaError_t error = thread_state(m).last_error;
  const auto device = static_cast<std::size_t>(current_device(m));
  const bool broken = device < m.devices.size() && m.devices[device]->sticky != cudaSuccess;
  if (clear && !broken) thread_state(m).last_error = cudaSuccess;
  return error;
}

}  // namespace stagecoach::cuda_emulation
