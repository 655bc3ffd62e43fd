// Calls about streams, events and kernels.
#include <memory>
#include <utility>

#include "tests/cuda_emulation/machine_state.hpp"

namespace emulation = stagecoach::cuda_emulation;
using emulation::Capture;
using emulation::counted_call;
using emulation::Kind;
using emulation::Machine;
using emulation::Place;

namespace {

struct FoundStream {
  std::uint64_t id = 0;
  int device = 0;
};
cudaError_t find(const Machine& m, cudaStream_t handle, FoundStream& found) {
  return m.find_stream(handle, found.id, found.device) ? cudaSuccess : cudaErrorInvalidResourceHandle;
}
CUevent_st* find(const Machine& m, cudaEvent_t handle) {
  const auto found = m.event_handles.find(handle);
  return found == m.event_handles.end() ? nullptr : found->second.get();
}
cudaError_t sticky(const Machine& m, int device) {
  return m.devices[static_cast<std::size_t>(device)]->sticky;
}

cudaError_t create(Machine& m, cudaStream_t* handle, unsigned flags) {
  if (handle == nullptr || (flags & ~cudaStreamNonBlocking) != 0) return cudaErrorInvalidValue;
  const int device = emulation::current_device(m);
  const std::uint64_t id = m.streams.create(device, flags == cudaStreamDefault);
  auto stream = std::make_unique<CUstream_st>(CUstream_st{device, id, {}});
  *handle = stream.get();
  m.stream_handles[*handle] = std::move(stream);
  return cudaSuccess;
}

// Like polling hardware: an operation more has run each time.
cudaError_t query(Machine& m, const Place& place, int device) {
  if (m.streams.reached(place)) return sticky(m, device);
  m.streams.try_one(place.stream);
  return sticky(m, device) != cudaSuccess ? sticky(m, device) : cudaErrorNotReady;
}

bool in_range(const dim3& size, unsigned x, unsigned y, unsigned z) {
  return size.x >= 1 && size.y >= 1 && size.z >= 1 && size.x <= x && size.y <= y && size.z <= z;
}

}  // namespace

// ---- streams ----
cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return counted_call("cudaStreamCreate", [&](Machine& m) { return create(m, stream, cudaStreamDefault); });
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return counted_call("cudaStreamCreateWithFlags", [&](Machine& m) { return create(m, stream, flags); });
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
  return counted_call("cudaStreamCreateWithPriority", [&](Machine& m) { return create(m, stream, flags); });
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  return counted_call<Kind::kReleases>("cudaStreamDestroy", [&](Machine& m) {
    const auto found = m.stream_handles.find(stream);
    if (found == m.stream_handles.end()) return cudaErrorInvalidResourceHandle;
    m.streams.destroy(found->second->id);
    m.stream_handles.erase(found);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return counted_call("cudaStreamSynchronize", [&](Machine& m) {
    FoundStream found;
    if (const cudaError_t error = find(m, stream, found)) return error;
    if (const cudaError_t error = m.refuse_in_capture(found.id)) return error;
    const bool legacy = found.id == m.devices[static_cast<std::size_t>(found.device)]->default_stream;
    // An operation of the default stream comes after everything in blocking streams.
    m.streams.run_until(legacy ? m.streams.enqueue(found.id, [] {}) : m.streams.end(found.id));
    return sticky(m, found.device);
  });
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
  return counted_call("cudaStreamQuery", [&](Machine& m) {
    FoundStream found;
    if (const cudaError_t error = find(m, stream, found)) return error;
    if (const cudaError_t error = m.refuse_in_capture(found.id)) return error;
    return query(m, m.streams.end(found.id), found.device);
  });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  return counted_call("cudaStreamWaitEvent", [&](Machine& m) {
    FoundStream found;
    const CUevent_st* waited = find(m, event);
    if (find(m, stream, found) != cudaSuccess || waited == nullptr) return cudaErrorInvalidResourceHandle;
    if (!waited->record) return cudaSuccess;
    if (Capture* capture = m.capture_of(found.id)) {  // of what is not captured
      capture->invalid = true;
      return cudaErrorStreamCaptureIsolation;
    }
    if (m.mutations.drop_waits != 0) {
      if (m.mutations.drop_waits > 0) --m.mutations.drop_waits;
      return cudaSuccess;
    }
    const Place place = m.streams.enqueue(found.id, [] {}, {*waited->record});
    if (m.options.timing == emulation::Timing::kImmediate) m.streams.try_until(place);
    return cudaSuccess;
  });
}

// ---- events ----
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  return counted_call("cudaEventCreateWithFlags", [&](Machine& m) {
    if (event == nullptr || (flags & ~(cudaEventBlockingSync | cudaEventDisableTiming)) != 0) {
      return cudaErrorInvalidValue;
    }
    auto made = std::make_unique<CUevent_st>();
    made->device = emulation::current_device(m);
    made->timing = (flags & cudaEventDisableTiming) == 0;
    *event = made.get();
    m.event_handles[*event] = std::move(made);
    return cudaSuccess;
  });
}
cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, cudaEventDefault);
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  return counted_call<Kind::kReleases>("cudaEventDestroy", [&](Machine& m) {
    return m.event_handles.erase(event) == 1 ? cudaSuccess : cudaErrorInvalidResourceHandle;
  });
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return counted_call("cudaEventRecord", [&](Machine& m) {
    FoundStream found;
    CUevent_st* recorded = find(m, event);
    if (find(m, stream, found) != cudaSuccess || recorded == nullptr || recorded->device != found.device) {
      return cudaErrorInvalidResourceHandle;
    }
    // Real ones become part of the capture; nothing here needs that.
    if (m.capture_of(found.id) != nullptr) return m.refuse_in_capture(found.id);
    const Place place = {found.id, m.streams.end(found.id).count + 1};
    recorded->record = place;
    m.streams.enqueue(found.id, [&m, event, place] {
      CUevent_st* now = find(m, event);  // unless it was destroyed or recorded again
      if (now != nullptr && now->record && now->record->stream == place.stream && now->record->count == place.count) {
        now->time = std::chrono::steady_clock::now();
      }
    });
    if (m.options.timing == emulation::Timing::kImmediate) m.streams.try_until(place);
    return cudaSuccess;
  });
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  return counted_call("cudaEventQuery", [&](Machine& m) {
    if (const cudaError_t error = m.refuse_in_capture()) return error;
    const CUevent_st* queried = find(m, event);
    if (queried == nullptr) return cudaErrorInvalidResourceHandle;
    return queried->record ? query(m, *queried->record, queried->device) : cudaSuccess;
  });
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return counted_call("cudaEventSynchronize", [&](Machine& m) {
    if (const cudaError_t error = m.refuse_in_capture()) return error;
    const CUevent_st* waited = find(m, event);
    if (waited == nullptr) return cudaErrorInvalidResourceHandle;
    if (waited->record) m.streams.run_until(*waited->record);
    return sticky(m, waited->device);
  });
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  return counted_call("cudaEventElapsedTime", [&](Machine& m) {
    const CUevent_st* first = find(m, start);
    const CUevent_st* last = find(m, end);
    if (milliseconds == nullptr) return cudaErrorInvalidValue;
    if (first == nullptr || last == nullptr || !first->timing || !last->timing || !first->record || !last->record) {
      return cudaErrorInvalidResourceHandle;
    }
    if (!m.streams.reached(*first->record) || !m.streams.reached(*last->record)) return cudaErrorNotReady;
    *milliseconds = std::chrono::duration<float, std::milli>(last->time - first->time).count();
    return cudaSuccess;
  });
}

// ---- kernels ----
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  return counted_call("cudaFuncSetAttribute", [&](Machine& m) {
    if (kernel == nullptr) return cudaErrorInvalidDeviceFunction;
    if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
        static_cast<std::size_t>(value) > emulation::kSharedBytesOptIn) {
      return cudaErrorInvalidValue;
    }
    m.devices[static_cast<std::size_t>(emulation::current_device(m))]->shared_allowed[kernel] =
        static_cast<std::size_t>(value);
    return cudaSuccess;
  });
}

cudaError_t emulation::launch_kernel(const cudaLaunchConfig_t& config, const void* kernel,
                                     std::function<void()> thread) {
  return counted_call("cudaLaunchKernelEx", [&](Machine& m) {
    FoundStream found;
    if (const cudaError_t error = find(m, config.stream, found)) return error;
    const int device = emulation::current_device(m);
    if (found.device != device) return cudaErrorInvalidResourceHandle;
    if (kernel == nullptr) return cudaErrorInvalidDeviceFunction;
    if (config.numAttrs != 0) return cudaErrorNotSupported;
    const dim3& block = config.blockDim;
    if (!in_range(config.gridDim, 0x7FFFFFFFu, 65535, 65535) || !in_range(block, 1024, 1024, 64) ||
        block.x * block.y * block.z > static_cast<unsigned>(kMaxThreads)) {
      return cudaErrorInvalidConfiguration;
    }
    const auto& allowed = m.devices[static_cast<std::size_t>(device)]->shared_allowed;
    const auto raised = allowed.find(kernel);
    if (config.dynamicSmemBytes > (raised != allowed.end() ? raised->second : kSharedBytes)) {
      return cudaErrorInvalidValue;
    }
    Launch launch = {config.gridDim, block, config.dynamicSmemBytes, std::move(thread)};
    return m.submit(found.id, {device, [&m, launch = std::move(launch)] { return m.run_kernel(launch); }});
  });
}
