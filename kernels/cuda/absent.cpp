// In place of the CUDA backend in builds without CUDA.
#include "kernels/cuda/cuda_backend.hpp"

namespace stagecoach {

std::vector<CudaDevice> cuda_devices() {
  throw DeviceError(
      "this build has no CUDA backend; build it where the CUDA toolkit is installed, or use --device cpu");
}

std::int64_t cuda_free_bytes(int) {
  cuda_devices();
  return 0;
}

std::string cuda_versions() {
  return "";
}

std::unique_ptr<Backend> make_cuda_backend(const CudaOptions&) {
  cuda_devices();
  return nullptr;
}

const cuda::DeviceQueue& device_queue(const Backend& backend) {
  throw std::invalid_argument(backend.name() + " has no CUDA stream");
}

std::optional<bool> can_reach(int, const std::string&) {
  return std::nullopt;
}

}  // namespace stagecoach
