// cuBLASLt against loops in double: transposes, types, epilogues, splits; and what it refuses.
#include <cublasLt.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "tests/cuda_emulation/cublas_lt_matmul.hpp"
#include "tests/cuda_emulation/fixture.hpp"

using namespace stagecoach;
using namespace stagecoach::cuda_emulation;

namespace {

struct Problem {
  std::size_t m = 5, n = 7, k = 9;
  bool transpose_a = false, transpose_b = false;
  cudaDataType_t type = CUDA_R_16F, out_type = CUDA_R_32F, bias_type = CUDA_R_32F;
  cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  float alpha = 1, beta = 0;
  int algorithm = 0;  // -1: none given
};

Element element(cudaDataType_t type) {
  return type == CUDA_R_32F ? Element::kFloat32 : type == CUDA_R_16F ? Element::kHalf : Element::kBFloat16;
}

// Owns descriptors and memory of one product, filled at random.
struct Case {
  explicit Case(const Problem& problem)
      : p(problem),
        a(stored(p.transpose_a ? p.k : p.m, p.transpose_a ? p.m : p.k, p.type, 3)),
        b(stored(p.transpose_b ? p.n : p.k, p.transpose_b ? p.k : p.n, p.type, 2)),
        c(stored(p.m, p.n, p.out_type, 1)),
        bias_host(stored(p.m, 1, p.bias_type, 0)) {
    REQUIRE(cublasLtCreate(&handle) == CUBLAS_STATUS_SUCCESS);
    REQUIRE(cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS);
    set(CUBLASLT_MATMUL_DESC_TRANSA, p.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(CUBLASLT_MATMUL_DESC_TRANSB, p.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, p.epilogue);
    set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, p.bias_type);
    const void* pointer = bias.data();
    set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, pointer);
    layout(a_layout, p.type, p.transpose_a ? p.k : p.m, p.transpose_a ? p.m : p.k, 3);
    layout(b_layout, p.type, p.transpose_b ? p.n : p.k, p.transpose_b ? p.k : p.n, 2);
    layout(c_layout, p.out_type, p.m, p.n, 1);
    REQUIRE(cublasLtMatmulPreferenceCreate(&preference) == CUBLAS_STATUS_SUCCESS);
    const std::uint64_t bytes = 1 << 16;
    REQUIRE(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes,
                                                 sizeof(bytes)) == CUBLAS_STATUS_SUCCESS);
  }
  ~Case() {
    cublasLtMatmulPreferenceDestroy(preference);
    for (const auto l : {a_layout, b_layout, c_layout}) cublasLtMatrixLayoutDestroy(l);
    cublasLtMatmulDescDestroy(desc);
    cublasLtDestroy(handle);
  }
  Case(const Case&) = delete;
  Case& operator=(const Case&) = delete;

  template <typename T>
  void set(cublasLtMatmulDescAttributes_t attribute, const T& value) {
    REQUIRE(cublasLtMatmulDescSetAttribute(desc, attribute, &value, sizeof(value)) == CUBLAS_STATUS_SUCCESS);
  }
  static void layout(cublasLtMatrixLayout_t& l, cudaDataType_t type, std::size_t rows, std::size_t columns, int extra) {
    REQUIRE(cublasLtMatrixLayoutCreate(&l, type, rows, columns, static_cast<std::int64_t>(rows) + extra) ==
            CUBLAS_STATUS_SUCCESS);
  }
  // Columns `extra` elements further apart than they need to be.
  static std::vector<std::byte> stored(std::size_t rows, std::size_t columns, cudaDataType_t type, std::size_t extra) {
    static std::mt19937 random{std::random_device{}()};
    std::normal_distribution<float> normal;
    const std::size_t count = (rows + extra) * columns;
    std::vector<std::byte> bytes(count * bytes_of(element(type)));
    for (std::size_t i = 0; i < count; ++i) store_element(bytes.data(), element(type), i, normal(random));
    return bytes;
  }

  int heuristics(cublasLtMatmulHeuristicResult_t (&results)[4]) {
    int count = 0;
    REQUIRE(cublasLtMatmulAlgoGetHeuristic(handle, desc, a_layout, b_layout, c_layout, c_layout, preference, 4, results,
                                           &count) == CUBLAS_STATUS_SUCCESS);
    return count;
  }
  cublasStatus_t run(const void* from_a, cudaStream_t stream = nullptr) {
    cublasLtMatmulHeuristicResult_t results[4];
    const int count = heuristics(results);
    REQUIRE(p.algorithm < count);
    const auto* algo = p.algorithm < 0 ? nullptr : &results[p.algorithm].algo;
    return cublasLtMatmul(handle, desc, &p.alpha, from_a, a_layout, device_b.data(), b_layout, &p.beta, device_c.data(),
                          c_layout, device_d.data(), c_layout, algo, workspace.data(), workspace.bytes(), stream);
  }

  // The largest difference from double loops, relative to the scale of the sums.
  double worst() {
    const auto got = device_d.read();
    const Element type = element(p.type), out = element(p.out_type);
    double worst = 0;
    for (std::size_t row = 0; row < p.m; ++row) {
      for (std::size_t column = 0; column < p.n; ++column) {
        double sum = 0;
        for (std::size_t i = 0; i < p.k; ++i) {
          const float x = load_element(a.data(), type, p.transpose_a ? row * (p.k + 3) + i : i * (p.m + 3) + row);
          const float y = load_element(b.data(), type, p.transpose_b ? i * (p.n + 2) + column : column * (p.k + 2) + i);
          sum += static_cast<double>(x) * static_cast<double>(y);
        }
        const std::size_t at = column * (p.m + 1) + row;
        sum = static_cast<double>(p.alpha) * sum;
        if (p.beta != 0) sum += static_cast<double>(p.beta) * static_cast<double>(load_element(c.data(), out, at));
        if ((p.epilogue & CUBLASLT_EPILOGUE_BIAS) != 0) {
          sum += static_cast<double>(load_element(bias_host.data(), element(p.bias_type), row));
        }
        if ((p.epilogue & CUBLASLT_EPILOGUE_RELU) != 0) sum = std::max(sum, 0.0);
        if ((p.epilogue & CUBLASLT_EPILOGUE_GELU) != 0) {
          sum = 0.5 * sum * (1 + std::tanh(std::sqrt(2 / M_PI) * (sum + 0.044715 * sum * sum * sum)));
        }
        const auto value = static_cast<double>(load_element(got.data(), out, at));
        worst = std::max(worst, std::abs(value - sum) / (1 + std::abs(sum)));
      }
    }
    return worst;
  }
  double allowed() const { return p.out_type == CUDA_R_32F ? 1e-5 : p.out_type == CUDA_R_16F ? 0x1p-10 : 0x1p-7; }

  Problem p;
  std::vector<std::byte> a, b, c, bias_host;
  DeviceArray<std::byte> device_a{a}, device_b{b}, device_c{c}, bias{bias_host};
  DeviceArray<std::byte> device_d{c.size()}, workspace{1 << 16};
  cublasLtHandle_t handle = nullptr;
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t a_layout = nullptr, b_layout = nullptr, c_layout = nullptr;
  cublasLtMatmulPreference_t preference = nullptr;
};

void check_case(const Problem& problem) {
  Case c(problem);
  CHECK(c.run(c.device_a.data()) == CUBLAS_STATUS_SUCCESS);
  CHECK(c.worst() <= c.allowed());
}

}  // namespace

TEST_CASE("products: transposes, types, epilogues, scales, algorithms") {
  const FreshMachine fresh;
  for (const bool ta : {false, true}) {
    for (const bool tb : {false, true}) {
      for (const auto type : {CUDA_R_32F, CUDA_R_16F, CUDA_R_16BF}) {
        check_case({.transpose_a = ta, .transpose_b = tb, .type = type});
        check_case({.m = 33,
                    .n = 1,
                    .k = 65,
                    .transpose_a = ta,
                    .transpose_b = tb,
                    .type = type,
                    .out_type = type,
                    .bias_type = type,
                    .epilogue = CUBLASLT_EPILOGUE_BIAS});
      }
    }
  }
  for (const auto epilogue : {CUBLASLT_EPILOGUE_RELU, CUBLASLT_EPILOGUE_RELU_BIAS, CUBLASLT_EPILOGUE_GELU,
                              CUBLASLT_EPILOGUE_GELU_BIAS, CUBLASLT_EPILOGUE_BIAS}) {
    check_case({.transpose_a = true, .epilogue = epilogue, .alpha = 0.5f, .beta = 2});
  }
  for (const int algorithm : {-1, 0, 1}) check_case({.k = 40, .beta = 1, .algorithm = algorithm});
  CHECK(live() == Live{});
}

TEST_CASE("products are queued: they read their operands when they run, and their descriptor at the call") {
  const FreshMachine fresh;
  Case c({.out_type = CUDA_R_16F});
  cudaStream_t stream = nullptr;
  REQUIRE(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
  CHECK(c.run(c.device_a.data(), stream) == CUBLAS_STATUS_SUCCESS);
  c.set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_RELU);
  for (std::size_t i = 0; i < c.a.size() / 2; ++i) {
    store_element(c.a.data(), Element::kHalf, i, -load_element(c.a.data(), Element::kHalf, i));
  }
  REQUIRE(cudaMemcpy(c.device_a.data(), c.a.data(), c.a.size(), cudaMemcpyHostToDevice) == cudaSuccess);
  REQUIRE(cudaStreamSynchronize(nullptr) == cudaSuccess);
  CHECK(c.worst() <= c.allowed());
  cudaStreamDestroy(stream);
}

TEST_CASE("what cuBLASLt refuses") {
  const FreshMachine fresh;
  Case c({});
  cublasLtMatmulHeuristicResult_t results[4], result;
  CHECK(c.heuristics(results) == 2);
  CHECK(results[0].workspaceSize == 0);
  CHECK(results[1].workspaceSize == 2 * 5 * 7 * 4);
  CHECK(cublasLtMatmulAlgoCheck(c.handle, c.desc, c.a_layout, c.b_layout, c.c_layout, c.c_layout, &results[1].algo,
                                &result) == CUBLAS_STATUS_SUCCESS);
  CHECK(result.workspaceSize == results[1].workspaceSize);
  std::uint32_t splits = 0;
  std::size_t written = 0;
  CHECK(cublasLtMatmulAlgoConfigGetAttribute(&results[1].algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &splits, sizeof(splits),
                                             &written) == CUBLAS_STATUS_SUCCESS);
  CHECK((splits == 2 && written == 4));

  CHECK(c.run(c.device_a.data() + 2) == CUBLAS_STATUS_INVALID_VALUE);  // alignment, and beyond the allocation
  CHECK(c.run(c.a.data()) == CUBLAS_STATUS_INVALID_VALUE);             // host memory
  const void* host = c.a.data();
  c.set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
  c.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, host);
  CHECK(c.run(c.device_a.data()) == CUBLAS_STATUS_INVALID_VALUE);
  const std::int32_t wrong_epilogue = 128;
  CHECK(cublasLtMatmulDescSetAttribute(c.desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &wrong_epilogue, 8) ==
        CUBLAS_STATUS_INVALID_VALUE);
  c.set(CUBLASLT_MATMUL_DESC_EPILOGUE, wrong_epilogue);
  int count = 0;
  const auto ask = [&] {
    return cublasLtMatmulAlgoGetHeuristic(c.handle, c.desc, c.a_layout, c.b_layout, c.c_layout, c.c_layout,
                                          c.preference, 4, results, &count);
  };
  CHECK(ask() == CUBLAS_STATUS_NOT_SUPPORTED);
  c.set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_DEFAULT);
  const std::int64_t leading = 4;
  REQUIRE(cublasLtMatrixLayoutSetAttribute(c.a_layout, CUBLASLT_MATRIX_LAYOUT_LD, &leading, sizeof(leading)) ==
          CUBLAS_STATUS_SUCCESS);
  CHECK(ask() == CUBLAS_STATUS_INVALID_VALUE);
  const std::uint64_t rows = 4;
  REQUIRE(cublasLtMatrixLayoutSetAttribute(c.a_layout, CUBLASLT_MATRIX_LAYOUT_ROWS, &rows, sizeof(rows)) ==
          CUBLAS_STATUS_SUCCESS);
  CHECK(ask() == CUBLAS_STATUS_INVALID_VALUE);
  const std::int32_t order = CUBLASLT_ORDER_ROW;
  CHECK(cublasLtMatrixLayoutSetAttribute(c.a_layout, CUBLASLT_MATRIX_LAYOUT_ORDER, &order, sizeof(order)) ==
        CUBLAS_STATUS_NOT_SUPPORTED);
  fail_call(1, cudaErrorMemoryAllocation);
  CHECK(ask() == CUBLAS_STATUS_ALLOC_FAILED);
  fail_call(1, cudaErrorUnknown);
  CHECK(ask() == CUBLAS_STATUS_EXECUTION_FAILED);
}
