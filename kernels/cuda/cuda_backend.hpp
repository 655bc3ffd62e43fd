// The CUDA backend: cuBLASLt for products of many rows, own kernels for the rest (kernels/cuda). One device, one stream
// for operations and one for copies beside them; all device memory comes from one allocation made at the start.
//
// Matrices are float32, float16 or bfloat16 (not int8), activations of the matrices' dtype; sums are float32. With
// `deterministic` a row's results have the same bits whatever shares its call: no product goes to cuBLASLt, which
// chooses its kernels by shape, and attention splits sequences at fixed positions.
//
// Steps in which every row continues a sequence of its own are padded to a few numbers of rows and replayed as CUDA
// graphs (recorded_steps.hpp); page tables, positions, tokens and attention's plan are uploaded before each.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/backend.hpp"

namespace stagecoach {

struct CudaDevice {
  int index = 0;  // among the visible ones (CUDA_VISIBLE_DEVICES)
  std::string name;
  std::string pci;  // identifies the device on its host: "0000:3B:00"
  std::int64_t total_bytes = 0;
};

// The devices that this process may use, at least one. Throws DeviceError when there is none, or no driver, or when
// this build has no CUDA.
std::vector<CudaDevice> cuda_devices();

// Bytes free on a device of cuda_devices; this process has a context there from then on. Throws DeviceError.
std::int64_t cuda_free_bytes(int device);

// "CUDA 13.0, cuBLASLt 13.1", of cuBLASLt what this was built with; empty in a build without.
std::string cuda_versions();

struct CudaOptions {
  int device = 0;               // index of cuda_devices
  std::int64_t pool_bytes = 0;  // for all buffers
  bool deterministic = false;
  bool graphs = true;  // record steps that repeat, and replay them
};
// Throws DeviceError.
std::unique_ptr<Backend> make_cuda_backend(const CudaOptions& options);

namespace cuda {
struct DeviceQueue;  // device_queue.hpp
}
// Of a backend that make_cuda_backend made, as long as that lives. Throws std::invalid_argument for any other.
const cuda::DeviceQueue& device_queue(const Backend& backend);

// Whether two of this host's devices can read each other's memory (over NVLink or PCIe); `pci` is that of the other.
// Nothing when this process does not see the other one.
std::optional<bool> can_reach(int device, const std::string& pci);

}  // namespace stagecoach
