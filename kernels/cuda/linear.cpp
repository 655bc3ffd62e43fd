// cuBLASLt works on column-major matrices. Seen so, `w` (out, in) by rows is (in, out) and transposed once more, `x` is
// (in, rows) and `out` (out, rows): out = w^T x.
#include "kernels/cuda/linear.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "kernels/cuda/check.hpp"
#include "kernels/cuda/device_matrix.hpp"
#include "kernels/cuda/few_rows.hpp"

namespace stagecoach::cuda {
namespace {

// Shapes are few (one per matrix and number of rows), but nothing else bounds them.
constexpr std::size_t kMostChoices = 20'000;

cudaDataType_t type_of(DType dtype) {
  return dtype == DType::kFloat32 ? CUDA_R_32F : dtype == DType::kFloat16 ? CUDA_R_16F : CUDA_R_16BF;
}

// The epilogue of cuBLASLt that does bias and activation at once, if it has one.
std::optional<cublasLtEpilogue_t> fused_epilogue(bool bias, Activation activation) {
  switch (activation) {
    case Activation::kNone:
      return bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
    case Activation::kGeluTanh:
      return bias ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU;
    case Activation::kRelu:
      return bias ? CUBLASLT_EPILOGUE_RELU_BIAS : CUBLASLT_EPILOGUE_RELU;
    case Activation::kGeluErf:
    case Activation::kSilu:
      break;
  }
  return std::nullopt;
}

struct DestroyDescription {
  void operator()(cublasLtMatmulDesc_t d) const noexcept { cublasLtMatmulDescDestroy(d); }
};
struct DestroyLayout {
  void operator()(cublasLtMatrixLayout_t l) const noexcept { cublasLtMatrixLayoutDestroy(l); }
};
struct DestroyPreference {
  void operator()(cublasLtMatmulPreference_t p) const noexcept { cublasLtMatmulPreferenceDestroy(p); }
};
using Description = std::unique_ptr<std::remove_pointer_t<cublasLtMatmulDesc_t>, DestroyDescription>;
using Layout = std::unique_ptr<std::remove_pointer_t<cublasLtMatrixLayout_t>, DestroyLayout>;
using Preference = std::unique_ptr<std::remove_pointer_t<cublasLtMatmulPreference_t>, DestroyPreference>;

template <typename T>
void set(const Description& description, cublasLtMatmulDescAttributes_t attribute, const T& value) {
  check(cublasLtMatmulDescSetAttribute(description.get(), attribute, &value, sizeof value));
}

// (rows, cols) column-major: the transposed view of a tensor of ours.
Layout make_layout(Tensor t) {
  cublasLtMatrixLayout_t layout = nullptr;
  check(cublasLtMatrixLayoutCreate(&layout, type_of(t.dtype), static_cast<std::uint64_t>(t.cols),
                                   static_cast<std::uint64_t>(t.rows), t.rows > 1 ? t.stride : t.cols));
  return Layout(layout);
}

Description make_description(cublasLtEpilogue_t epilogue, Tensor bias) {
  cublasLtMatmulDesc_t created = nullptr;
  check(cublasLtMatmulDescCreate(&created, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  Description description(created);
  set(description, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
  set(description, CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N);
  set(description, CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
  if (bias.data != nullptr) {
    set(description, CUBLASLT_MATMUL_DESC_BIAS_POINTER, static_cast<const void*>(bias.data));
    set(description, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, type_of(bias.dtype));
  }
  return description;
}

bool aligned_16(Tensor t) {
  return reinterpret_cast<std::uintptr_t>(t.data) % 16 == 0 && t.stride * size_of(t.dtype) % 16 == 0;
}

}  // namespace

// One product as cuBLASLt takes it.
struct Linear::Product {
  Description description;
  Layout w, x, out;
};

Linear::Linear(bool deterministic, void* workspace, std::size_t workspace_bytes)
    : deterministic_(deterministic), workspace_(workspace), workspace_bytes_(workspace_bytes) {
  cublasLtHandle_t handle = nullptr;
  check(cublasLtCreate(&handle));
  handle_.reset(handle);
}

void Linear::run(cudaStream_t stream, Tensor x, const Matrix& w, Tensor bias, Epilogue epilogue, Tensor out) {
  if (x.rows == 0) return;
  if (x.dtype != w.dtype) {
    throw std::invalid_argument(
        fmt::format("linear: {} rows for a {} matrix on a CUDA device", name_of(x.dtype), name_of(w.dtype)));
  }
  const bool large = x.rows > kFewRows && w.in * size_of(w.dtype) % 16 == 0 && aligned_16(x) && aligned_16(out);
  if (large && !deterministic_) {
    run_cublas(stream, x, w, bias, epilogue, out);
  } else {
    few_rows_linear(stream, x, w, bias, epilogue, out);
  }
}

void Linear::run_cublas(cudaStream_t stream, Tensor x, const Matrix& w, Tensor bias, Epilogue epilogue, Tensor out) {
  const std::optional<cublasLtEpilogue_t> fused = fused_epilogue(bias.data != nullptr, epilogue.activation);
  if (fused && multiply(stream, x, w, *fused, bias, epilogue.add_to_output, out)) return;
  // Sums stay float32 until bias and activation are done, in half of the workspace, as many rows at once as it holds.
  const std::int64_t row_bytes = (w.out + 3) / 4 * 16;
  const std::int64_t at_once = static_cast<std::int64_t>(workspace_bytes_ / 2) / row_bytes;
  if (epilogue.add_to_output || at_once < 1) return few_rows_linear(stream, x, w, bias, epilogue, out);
  for (std::int64_t r = 0; r < x.rows; r += at_once) {
    const std::int64_t rows = std::min(at_once, x.rows - r);
    const Tensor sums{workspace_, DType::kFloat32, rows, w.out, row_bytes / 4};
    if (!multiply(stream, x.slice(r, rows), w, CUBLASLT_EPILOGUE_DEFAULT, {}, false, sums)) {
      throw DeviceError(fmt::format("cuBLASLt has no way for a product of {} rows with a {} ({}, {}) matrix", rows,
                                    name_of(w.dtype), w.in, w.out));
    }
    finish_linear(stream, sums, bias, epilogue.activation, out.slice(r, rows));
  }
}

bool Linear::multiply(cudaStream_t stream, Tensor x, const Matrix& w, cublasLtEpilogue_t epilogue, Tensor bias,
                      bool add, Tensor out) {
  const Tensor weights = as_tensor(w);
  const Product product{make_description(epilogue, bias), make_layout(weights), make_layout(x), make_layout(out)};
  const Key key{w.in,
                w.out,
                static_cast<std::int64_t>(w.dtype),
                x.rows,
                x.stride,
                static_cast<std::int64_t>(out.dtype),
                out.stride,
                static_cast<std::int64_t>(epilogue),
                add ? 1 : 0};
  auto choice = choices_.find(key);
  if (choice == choices_.end()) {
    if (choices_.size() >= kMostChoices) choices_.clear();
    choice = choices_.emplace(key, algorithm_for(product)).first;
  }
  if (!choice->second) return false;
  const float one = 1.0F;
  const float before = add ? 1.0F : 0.0F;
  // The first half of the workspace may hold `out`.
  check(cublasLtMatmul(handle_.get(), product.description.get(), &one, weights.data, product.w.get(), x.data,
                       product.x.get(), &before, out.data, product.out.get(), out.data, product.out.get(),
                       &*choice->second, static_cast<std::byte*>(workspace_) + workspace_bytes_ / 2,
                       workspace_bytes_ / 2, stream));
  return true;
}

std::optional<cublasLtMatmulAlgo_t> Linear::algorithm_for(const Product& product) const {
  cublasLtMatmulPreference_t created = nullptr;
  check(cublasLtMatmulPreferenceCreate(&created));
  const Preference preference(created);
  const std::uint64_t workspace = workspace_bytes_ / 2;
  check(cublasLtMatmulPreferenceSetAttribute(created, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                             sizeof workspace));
  // Rows need not begin at more than what `run` has made sure of.
  const std::uint32_t alignment = 16;
  for (const auto attribute :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    check(cublasLtMatmulPreferenceSetAttribute(created, attribute, &alignment, sizeof alignment));
  }
  cublasLtMatmulHeuristicResult_t found = {};
  int count = 0;
  const cublasStatus_t status =
      cublasLtMatmulAlgoGetHeuristic(handle_.get(), product.description.get(), product.w.get(), product.x.get(),
                                     product.out.get(), product.out.get(), created, 1, &found, &count);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED || (status == CUBLAS_STATUS_SUCCESS && count == 0)) return std::nullopt;
  check(status);
  return found.algo;
}

}  // namespace stagecoach::cuda
