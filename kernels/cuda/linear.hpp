// Products: which kernel for which shape. Knows cuBLASLt and the kernels for few rows; shapes were checked.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <type_traits>

#include "kernels/backend.hpp"

namespace stagecoach::cuda {

class Linear {
 public:
  // `workspace` is memory of the device, of a multiple of 512 bytes, used by one product at a time: half for its sums
  // where cuBLASLt does not do all of it, half for cuBLASLt.
  Linear(bool deterministic, void* workspace, std::size_t workspace_bytes);

  // As Backend::linear.
  void run(cudaStream_t stream, Tensor x, const Matrix& w, Tensor bias, Epilogue epilogue, Tensor out);

 private:
  struct DestroyHandle {
    void operator()(cublasLtHandle_t handle) const noexcept { cublasLtDestroy(handle); }
  };
  // Everything that a choice of algorithm may depend on: shapes, dtypes, epilogue.
  using Key = std::array<std::int64_t, 9>;
  struct Product;

  void run_cublas(cudaStream_t stream, Tensor x, const Matrix& w, Tensor bias, Epilogue epilogue, Tensor out);
  // False when cuBLASLt has no algorithm for it.
  bool multiply(cudaStream_t stream, Tensor x, const Matrix& w, cublasLtEpilogue_t epilogue, Tensor bias, bool add,
                Tensor out);
  std::optional<cublasLtMatmulAlgo_t> algorithm_for(const Product& product) const;

  bool deterministic_;
  void* workspace_;
  std::size_t workspace_bytes_;
  std::unique_ptr<std::remove_pointer_t<cublasLtHandle_t>, DestroyHandle> handle_;
  std::map<Key, std::optional<cublasLtMatmulAlgo_t>> choices_;
};

}  // namespace stagecoach::cuda
