// Calls about memory: allocation, copies, filling. What runs at the call: reading pageable memory, and everything that
// writes pageable memory.
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "tests/cuda_emulation/machine_state.hpp"

namespace emulation = stagecoach::cuda_emulation;
using emulation::counted_call;
using emulation::Kind;
using emulation::Machine;
using emulation::Place;

namespace {

struct Copy {  // of `height` rows; one row is an ordinary copy
  void* to;
  std::size_t to_pitch;
  const void* from;
  std::size_t from_pitch;
  std::size_t width, height;

  std::size_t to_bytes() const { return (height - 1) * to_pitch + width; }
  std::size_t from_bytes() const { return (height - 1) * from_pitch + width; }
  void run() const {
    for (std::size_t row = 0; row < height; ++row) {
      std::memmove(static_cast<std::byte*>(to) + row * to_pitch, static_cast<const std::byte*>(from) + row * from_pitch,
                   width);
    }
  }
};

struct Side {
  int device;  // -1: host
  bool pinned;
};

// False when the range lies in a device's addresses without lying in an allocation, or partly outside pinned memory.
bool look_up(const Machine& m, const void* pointer, std::size_t bytes, Side& side) {
  if (pointer == nullptr) return false;
  side.device = m.device_of(pointer);
  if (side.device >= 0) return m.device_range(pointer, bytes);
  side.pinned = m.pinned(pointer, bytes);
  return side.pinned || !m.pinned(pointer, 1);
}

cudaError_t copy(Machine& m, const Copy& c, cudaMemcpyKind kind, cudaStream_t handle, bool wait) {
  std::uint64_t stream = 0;
  int device = 0;
  if (!m.find_stream(handle, stream, device)) return cudaErrorInvalidResourceHandle;
  if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault) return cudaErrorInvalidMemcpyDirection;
  if (c.width == 0 || c.height == 0) return cudaSuccess;
  if (c.height > 1 && (c.width > c.to_pitch || c.width > c.from_pitch)) return cudaErrorInvalidValue;
  Side to = {}, from = {};
  if (!look_up(m, c.to, c.to_bytes(), to) || !look_up(m, c.from, c.from_bytes(), from)) return cudaErrorInvalidValue;
  if (kind != cudaMemcpyDefault) {
    const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (to_device != (to.device >= 0) || from_device != (from.device >= 0)) return cudaErrorInvalidValue;
  }
  const int open = to.device >= 0 ? to.device : from.device;
  const int also = to.device >= 0 ? from.device : -1;
  Copy queued = c;
  std::vector<std::byte> staged;
  if (m.capture_of(stream) != nullptr) {
    const bool pageable = (from.device < 0 && !from.pinned) || (to.device < 0 && !to.pinned);
    if (wait || pageable) return m.refuse_in_capture(stream);
    return m.submit(stream, {open >= 0 ? open : device,
                             [queued] {
                               queued.run();
                               return cudaSuccess;
                             },
                             also});
  }
  if (from.device < 0 && !from.pinned) {  // read now
    if (wait) m.streams.run_stream(stream);
    staged.resize(c.width * c.height);
    Copy{staged.data(), c.width, c.from, c.from_pitch, c.width, c.height}.run();
    queued.from_pitch = c.width;
  }
  const auto work = [queued, staged = std::move(staged)]() mutable {
    if (!staged.empty()) queued.from = staged.data();
    queued.run();
    return cudaSuccess;
  };
  const Place place = m.enqueue(stream, open >= 0 ? open : device, work, {}, also);
  const bool device_only = to.device >= 0 && from.device >= 0;
  const bool writes_pageable = to.device < 0 && !to.pinned;
  const bool reads_pageable = from.device < 0 && !from.pinned;
  if (writes_pageable || (wait && !device_only && !reads_pageable)) m.streams.run_until(place);
  return m.devices[static_cast<std::size_t>(device)]->sticky;
}

cudaError_t fill(Machine& m, void* to, int value, std::size_t bytes, cudaStream_t handle) {
  std::uint64_t stream = 0;
  int device = 0;
  if (!m.find_stream(handle, stream, device)) return cudaErrorInvalidResourceHandle;
  if (bytes == 0) return cudaSuccess;
  Side side = {};
  if (!look_up(m, to, bytes, side) || (side.device < 0 && !side.pinned)) return cudaErrorInvalidValue;
  return m.submit(stream, {side.device >= 0 ? side.device : device, [=] {
                             std::memset(to, value, bytes);
                             return cudaSuccess;
                           }});
}

}  // namespace

cudaError_t cudaMalloc(void** pointer, std::size_t bytes) {
  return counted_call("cudaMalloc", [&](Machine& m) {
    if (const cudaError_t error = m.refuse_in_capture()) return error;
    if (pointer == nullptr) return cudaErrorInvalidValue;
    *pointer = nullptr;
    if (bytes == 0) return cudaSuccess;
    *pointer = m.devices[static_cast<std::size_t>(emulation::current_device(m))]->memory.allocate(bytes);
    return *pointer != nullptr ? cudaSuccess : cudaErrorMemoryAllocation;
  });
}

cudaError_t cudaFree(void* pointer) {
  return counted_call<Kind::kReleases>("cudaFree", [&](Machine& m) {
    if (pointer == nullptr) return cudaSuccess;
    if (const cudaError_t error = m.refuse_in_capture()) return error;
    const int device = m.device_of(pointer);
    if (device < 0) return cudaErrorInvalidValue;
    m.streams.run_device(device);  // work that uses it may be queued
    auto& owner = *m.devices[static_cast<std::size_t>(device)];
    if (!owner.memory.release(pointer)) return cudaErrorInvalidValue;
    return owner.sticky;
  });
}

cudaError_t cudaHostAlloc(void** pointer, std::size_t bytes, unsigned flags) {
  return counted_call("cudaHostAlloc", [&](Machine& m) {
    if (const cudaError_t error = m.refuse_in_capture()) return error;
    constexpr unsigned kFlags = cudaHostAllocPortable | cudaHostAllocMapped | cudaHostAllocWriteCombined;
    if (pointer == nullptr || (flags & ~kFlags) != 0) return cudaErrorInvalidValue;
    *pointer = nullptr;
    if (bytes == 0) return cudaSuccess;
    if (posix_memalign(pointer, 64, bytes) != 0) return cudaErrorMemoryAllocation;
    std::memset(*pointer, 0xFF, bytes);
    m.pinned_memory[*pointer] = bytes;
    return cudaSuccess;
  });
}

cudaError_t cudaMallocHost(void** pointer, std::size_t bytes, unsigned flags) {
  return cudaHostAlloc(pointer, bytes, flags);
}

cudaError_t cudaFreeHost(void* pointer) {
  return counted_call<Kind::kReleases>("cudaFreeHost", [&](Machine& m) {
    if (pointer == nullptr) return cudaSuccess;
    if (const cudaError_t error = m.refuse_in_capture()) return error;
    const auto found = m.pinned_memory.find(pointer);
    if (found == m.pinned_memory.end()) return cudaErrorInvalidValue;
    for (int device = 0; device < static_cast<int>(m.devices.size()); ++device) m.streams.run_device(device);
    std::free(pointer);
    m.pinned_memory.erase(found);
    return cudaSuccess;
  });
}

cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  return counted_call("cudaMemcpy", [&](Machine& m) {
    return copy(m, {to, bytes, from, bytes, bytes, 1}, kind, nullptr, true);
  });
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  return counted_call("cudaMemcpyAsync", [&](Machine& m) {
    return copy(m, {to, bytes, from, bytes, bytes, 1}, kind, stream, false);
  });
}
cudaError_t cudaMemcpy2D(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch, std::size_t width,
                         std::size_t height, cudaMemcpyKind kind) {
  return counted_call("cudaMemcpy2D", [&](Machine& m) {
    return copy(m, {to, to_pitch, from, from_pitch, width, height}, kind, nullptr, true);
  });
}
cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
                              std::size_t width, std::size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
  return counted_call("cudaMemcpy2DAsync", [&](Machine& m) {
    return copy(m, {to, to_pitch, from, from_pitch, width, height}, kind, stream, false);
  });
}
cudaError_t cudaMemset(void* to, int value, std::size_t bytes) {
  return counted_call("cudaMemset", [&](Machine& m) { return fill(m, to, value, bytes, nullptr); });
}
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
  return counted_call("cudaMemsetAsync", [&](Machine& m) { return fill(m, to, value, bytes, stream); });
}
