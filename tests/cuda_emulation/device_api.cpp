// Calls about devices, errors and versions.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "tests/cuda_emulation/machine_state.hpp"

namespace emulation = stagecoach::cuda_emulation;
using emulation::counted_call;
using emulation::Device;
using emulation::Machine;

namespace {

constexpr int kMultiprocessors = 4;
constexpr int kL2Bytes = 4 << 20;
constexpr int kFirstBus = 0x10;

bool valid_device(const Machine& m, int device) {
  return device >= 0 && device < static_cast<int>(m.devices.size());
}

struct ErrorText {
  cudaError_t error;
  const char* name;
  const char* text;
};
constexpr ErrorText kErrors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInitializationError, "cudaErrorInitializationError", "initialization error"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInvalidDevicePointer, "cudaErrorInvalidDevicePointer", "invalid device pointer"},
    {cudaErrorInvalidMemcpyDirection, "cudaErrorInvalidMemcpyDirection", "invalid copy direction for memcpy"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver",
     "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorDevicesUnavailable, "cudaErrorDevicesUnavailable", "CUDA-capable device(s) is/are busy or unavailable"},
    {cudaErrorInvalidDeviceFunction, "cudaErrorInvalidDeviceFunction", "invalid device function"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorNoKernelImageForDevice, "cudaErrorNoKernelImageForDevice",
     "no kernel image is available for execution on the device"},
    {cudaErrorECCUncorrectable, "cudaErrorECCUncorrectable", "uncorrectable ECC error encountered"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
    {cudaErrorLaunchOutOfResources, "cudaErrorLaunchOutOfResources", "too many resources requested for launch"},
    {cudaErrorLaunchTimeout, "cudaErrorLaunchTimeout", "the launch timed out and was terminated"},
    {cudaErrorMisalignedAddress, "cudaErrorMisalignedAddress", "misaligned address"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorNotPermitted, "cudaErrorNotPermitted", "operation not permitted"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureUnmatched, "cudaErrorStreamCaptureUnmatched",
     "capture was not ended in the same stream as it began"},
    {cudaErrorStreamCaptureIsolation, "cudaErrorStreamCaptureIsolation",
     "dependency created on uncaptured work in another stream"},
    {cudaErrorStreamCaptureWrongThread, "cudaErrorStreamCaptureWrongThread",
     "attempt to terminate a thread-local capture sequence from another thread"},
    {cudaErrorUnknown, "cudaErrorUnknown", "unknown error"},
};
const ErrorText* find_error(cudaError_t error) {
  const auto* found =
      std::find_if(std::begin(kErrors), std::end(kErrors), [&](const auto& e) { return e.error == error; });
  return found == std::end(kErrors) ? nullptr : found;
}

}  // namespace

cudaError_t cudaGetDeviceCount(int* count) {
  return counted_call("cudaGetDeviceCount", [&](Machine& m) {
    if (count == nullptr) return cudaErrorInvalidValue;
    *count = static_cast<int>(m.devices.size());
    return cudaSuccess;
  });
}

cudaError_t cudaSetDevice(int device) {
  return counted_call("cudaSetDevice", [&](Machine& m) {
    if (!valid_device(m, device)) return cudaErrorInvalidDevice;
    emulation::set_current_device(m, device);
    return cudaSuccess;
  });
}

cudaError_t cudaGetDevice(int* device) {
  return counted_call("cudaGetDevice", [&](Machine& m) {
    if (device == nullptr) return cudaErrorInvalidValue;
    *device = emulation::current_device(m);
    return cudaSuccess;
  });
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  return counted_call("cudaGetDeviceProperties", [&](Machine& m) {
    if (properties == nullptr) return cudaErrorInvalidValue;
    if (!valid_device(m, device)) return cudaErrorInvalidDevice;
    *properties = {};
    std::snprintf(properties->name, sizeof(properties->name), "Emulated device");
    std::memset(properties->uuid.bytes, 0xE0 + device, sizeof(properties->uuid.bytes));
    properties->totalGlobalMem = m.options.memory_bytes;
    properties->sharedMemPerBlock = emulation::kSharedBytes;
    properties->sharedMemPerBlockOptin = emulation::kSharedBytesOptIn;
    properties->sharedMemPerMultiprocessor = emulation::kSharedBytesOptIn + 1024;
    properties->warpSize = 32;
    properties->maxThreadsPerBlock = emulation::kMaxThreads;
    properties->maxThreadsPerMultiProcessor = 2048;
    properties->major = 9;
    properties->multiProcessorCount = kMultiprocessors;
    properties->l2CacheSize = kL2Bytes;
    properties->pciBusID = kFirstBus + device;
    properties->concurrentKernels = properties->asyncEngineCount = properties->unifiedAddressing = 1;
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  return counted_call("cudaDeviceGetAttribute", [&](Machine& m) {
    if (value == nullptr) return cudaErrorInvalidValue;
    if (!valid_device(m, device)) return cudaErrorInvalidDevice;
    switch (attribute) {
      case cudaDevAttrMaxThreadsPerBlock:
        *value = emulation::kMaxThreads;
        return cudaSuccess;
      case cudaDevAttrMaxSharedMemoryPerBlock:
        *value = emulation::kSharedBytes;
        return cudaSuccess;
      case cudaDevAttrWarpSize:
        *value = 32;
        return cudaSuccess;
      case cudaDevAttrMultiProcessorCount:
        *value = kMultiprocessors;
        return cudaSuccess;
      case cudaDevAttrL2CacheSize:
        *value = kL2Bytes;
        return cudaSuccess;
      case cudaDevAttrComputeCapabilityMajor:
        *value = 9;
        return cudaSuccess;
      case cudaDevAttrComputeCapabilityMinor:
        *value = 0;
        return cudaSuccess;
      case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *value = emulation::kSharedBytesOptIn + 1024;
        return cudaSuccess;
      case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = emulation::kSharedBytesOptIn;
        return cudaSuccess;
    }
    return cudaErrorInvalidValue;
  });
}

cudaError_t cudaDeviceGetPCIBusId(char* id, int length, int device) {
  return counted_call("cudaDeviceGetPCIBusId", [&](Machine& m) {
    if (id == nullptr || length < 13) return cudaErrorInvalidValue;
    if (!valid_device(m, device)) return cudaErrorInvalidDevice;
    std::snprintf(id, static_cast<std::size_t>(length), "0000:%02X:00.0", static_cast<unsigned>(kFirstBus + device));
    return cudaSuccess;
  });
}

// Devices 0 and 1, 2 and 3 and so on are neighbours.
cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) {
  return counted_call("cudaDeviceCanAccessPeer", [&](Machine& m) {
    if (can == nullptr) return cudaErrorInvalidValue;
    if (!valid_device(m, device) || !valid_device(m, peer) || device == peer) return cudaErrorInvalidDevice;
    *can = device / 2 == peer / 2 ? 1 : 0;
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  return counted_call("cudaDeviceGetStreamPriorityRange", [&](Machine&) {
    if (least != nullptr) *least = 0;
    if (greatest != nullptr) *greatest = -5;
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceSynchronize() {
  return counted_call("cudaDeviceSynchronize", [&](Machine& m) {
    if (const cudaError_t error = m.refuse_in_capture()) return error;
    const int device = emulation::current_device(m);
    m.streams.run_device(device);
    return m.devices[static_cast<std::size_t>(device)]->sticky;
  });
}

cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  return counted_call("cudaMemGetInfo", [&](Machine& m) {
    if (free == nullptr || total == nullptr) return cudaErrorInvalidValue;
    const auto& memory = m.devices[static_cast<std::size_t>(emulation::current_device(m))]->memory;
    *free = memory.limit_bytes() - memory.used_bytes();
    *total = memory.limit_bytes();
    return cudaSuccess;
  });
}

cudaError_t cudaDriverGetVersion(int* version) {
  Machine& m = emulation::machine();
  const std::lock_guard lock(m.mutex);
  *version = m.options.driver ? 13000 : 0;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}

cudaError_t cudaGetLastError() {
  Machine& m = emulation::machine();
  const std::lock_guard lock(m.mutex);
  return emulation::last_error(m, true);
}
cudaError_t cudaPeekAtLastError() {
  Machine& m = emulation::machine();
  const std::lock_guard lock(m.mutex);
  return emulation::last_error(m, false);
}

const char* cudaGetErrorString(cudaError_t error) {
  const ErrorText* found = find_error(error);
  return found != nullptr ? found->text : "unrecognized error code";
}
const char* cudaGetErrorName(cudaError_t error) {
  const ErrorText* found = find_error(error);
  return found != nullptr ? found->name : "unrecognized error code";
}
