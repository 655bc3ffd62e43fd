// CUDA backends for tests: small pools, so that several share the device.
#pragma once

#include <memory>

#include "kernels/cuda/cuda_backend.hpp"

namespace stagecoach::test {

inline std::unique_ptr<Backend> cuda_backend() {
  return make_cuda_backend({.device = 0, .pool_bytes = std::int64_t{64} << 20});
}
inline std::unique_ptr<Backend> deterministic_cuda_backend() {
  return make_cuda_backend({.device = 0, .pool_bytes = std::int64_t{64} << 20, .deterministic = true});
}

inline std::unique_ptr<Backend> ungraphed_cuda_backend() {
  return make_cuda_backend({.device = 0, .pool_bytes = std::int64_t{64} << 20, .deterministic = true, .graphs = false});
}

}  // namespace stagecoach::test
