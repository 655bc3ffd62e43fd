// kernels/cuda/cublas_lt_library.cpp with the real library: what can be called without a GPU.
#include <cublasLt.h>
#include <doctest/doctest.h>

#include <cstdint>
#include <fstream>
#include <iterator>
#include <string>

namespace {

bool loaded() {
  std::ifstream maps("/proc/self/maps");
  const std::string text{std::istreambuf_iterator<char>(maps), {}};
  return text.find("libcublasLt") != std::string::npos;
}

}  // namespace

TEST_CASE("cuBLASLt is loaded by the first call, and its functions are found") {
  CHECK_FALSE(loaded());
  CHECK(std::string(cublasLtGetStatusString(CUBLAS_STATUS_SUCCESS)) != "");
  CHECK(loaded());

  cublasLtMatmulDesc_t description = nullptr;
  REQUIRE(cublasLtMatmulDescCreate(&description, CUBLAS_COMPUTE_32F, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS);
  const cublasOperation_t transposed = CUBLAS_OP_T;
  CHECK(cublasLtMatmulDescSetAttribute(description, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed) ==
        CUBLAS_STATUS_SUCCESS);
  CHECK(cublasLtMatmulDescSetAttribute(description, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, 1) !=
        CUBLAS_STATUS_SUCCESS);

  cublasLtMatrixLayout_t layout = nullptr;
  REQUIRE(cublasLtMatrixLayoutCreate(&layout, CUDA_R_16F, 8, 3, 8) == CUBLAS_STATUS_SUCCESS);
  cublasLtMatmulPreference_t preference = nullptr;
  REQUIRE(cublasLtMatmulPreferenceCreate(&preference) == CUBLAS_STATUS_SUCCESS);
  const std::uint64_t workspace = 1 << 20;
  CHECK(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                             sizeof workspace) == CUBLAS_STATUS_SUCCESS);

  // These need a device, or refuse what they are given: that they answer at all is what counts here.
  cublasLtHandle_t handle = nullptr;
  if (cublasLtCreate(&handle) == CUBLAS_STATUS_SUCCESS) CHECK(cublasLtDestroy(handle) == CUBLAS_STATUS_SUCCESS);
  int found = 0;
  cublasLtMatmulHeuristicResult_t result = {};
  CHECK(cublasLtMatmulAlgoGetHeuristic(nullptr, description, layout, layout, layout, layout, preference, 1, &result,
                                       &found) != CUBLAS_STATUS_SUCCESS);
  CHECK(cublasLtMatmul(nullptr, description, nullptr, nullptr, layout, nullptr, layout, nullptr, nullptr, layout,
                       nullptr, layout, nullptr, nullptr, 0, nullptr) != CUBLAS_STATUS_SUCCESS);

  CHECK(cublasLtMatmulPreferenceDestroy(preference) == CUBLAS_STATUS_SUCCESS);
  CHECK(cublasLtMatrixLayoutDestroy(layout) == CUBLAS_STATUS_SUCCESS);
  CHECK(cublasLtMatmulDescDestroy(description) == CUBLAS_STATUS_SUCCESS);
}
