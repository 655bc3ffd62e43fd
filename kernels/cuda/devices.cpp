// Which devices there are, what is free on them, and the versions of what drives them.
#include <fmt/format.h>

#include "kernels/cuda/check.hpp"
#include "kernels/cuda/cuda_backend.hpp"

namespace stagecoach {

using cuda::check;

std::vector<CudaDevice> cuda_devices() {
  int count = 0;
  const cudaError_t result = cudaGetDeviceCount(&count);
  if (result != cudaSuccess || count == 0) {
    cudaGetLastError();
    throw DeviceError(fmt::format("no CUDA device: {}; use --device cpu, or a host with a GPU and its driver",
                                  result == cudaSuccess ? "none is visible" : cudaGetErrorString(result)));
  }
  std::vector<CudaDevice> devices;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties = {};
    check(cudaGetDeviceProperties(&properties, i));
    devices.push_back(
        {i, properties.name,
         fmt::format("{:04x}:{:02x}:{:02x}", properties.pciDomainID, properties.pciBusID, properties.pciDeviceID),
         static_cast<std::int64_t>(properties.totalGlobalMem)});
  }
  return devices;
}

std::int64_t cuda_free_bytes(int device) {
  check(cudaSetDevice(device));
  std::size_t free = 0;
  std::size_t total = 0;
  check(cudaMemGetInfo(&free, &total));
  return static_cast<std::int64_t>(free);
}

std::string cuda_versions() {
  int runtime = 0;
  if (cudaRuntimeGetVersion(&runtime) != cudaSuccess) return "CUDA";
  return fmt::format("CUDA {}.{}, cuBLASLt {}.{}", runtime / 1000, runtime % 1000 / 10, CUBLAS_VER_MAJOR,
                     CUBLAS_VER_MINOR);
}

}  // namespace stagecoach
