#include "tests/cuda_emulation/cublas_lt_objects.hpp"

#include <memory>
#include <utility>

namespace emulation = stagecoach::cuda_emulation;
using emulation::all_alive;
using emulation::counted_cublas;
using emulation::Machine;
using emulation::take;

namespace {

// Handles, descriptors, layouts and preferences live in the machine.
template <typename T, typename... Arguments>
cublasStatus_t create(Machine& m, T** handle, Arguments... arguments) {
  if (handle == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  auto made = std::make_unique<T>(T{arguments...});
  *handle = made.get();
  m.cublas_objects.emplace(*handle, std::unique_ptr<void, void (*)(void*)>(made.release(), [](void* object) {
    std::default_delete<T>{}(static_cast<T*>(object));
  }));
  return CUBLAS_STATUS_SUCCESS;
}
template <typename T>
cublasStatus_t destroy(const char* name, T* handle) {
  return emulation::counted_cublas<emulation::Kind::kReleases>(name, [&](Machine& m) {
    return m.cublas_objects.erase(handle) == 1 ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
  });
}

}  // namespace

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  return counted_cublas("cublasLtCreate", [&](Machine& m) { return create(m, handle); });
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  return destroy("cublasLtDestroy", handle);
}

const char* cublasLtGetStatusName(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED:
      return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_ARCH_MISMATCH:
      return "CUBLAS_STATUS_ARCH_MISMATCH";
    case CUBLAS_STATUS_MAPPING_ERROR:
      return "CUBLAS_STATUS_MAPPING_ERROR";
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_INTERNAL_ERROR:
      return "CUBLAS_STATUS_INTERNAL_ERROR";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
    case CUBLAS_STATUS_LICENSE_ERROR:
      return "CUBLAS_STATUS_LICENSE_ERROR";
  }
  return "unknown status";
}
const char* cublasLtGetStatusString(cublasStatus_t status) {
  return cublasLtGetStatusName(status);
}

// ---- descriptors ----
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* desc, cublasComputeType_t compute, cudaDataType_t scale) {
  return counted_cublas("cublasLtMatmulDescCreate", [&](Machine& m) {
    const bool known = compute == CUBLAS_COMPUTE_32F || compute == CUBLAS_COMPUTE_32F_PEDANTIC ||
                       compute == CUBLAS_COMPUTE_32F_FAST_TF32;
    if (!known || scale != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
    return create(m, desc, compute);
  });
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
  return destroy("cublasLtMatmulDescDestroy", desc);
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, std::size_t bytes) {
  return counted_cublas("cublasLtMatmulDescSetAttribute", [&](Machine& m) {
    if (!all_alive(m, desc)) return CUBLAS_STATUS_INVALID_VALUE;
    switch (attribute) {
      case CUBLASLT_MATMUL_DESC_TRANSA:
        return take(desc->trans_a, value, bytes);
      case CUBLASLT_MATMUL_DESC_TRANSB:
        return take(desc->trans_b, value, bytes);
      case CUBLASLT_MATMUL_DESC_EPILOGUE:
        return take(desc->epilogue, value, bytes);
      case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
        return take(desc->bias, value, bytes);
      case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE: {
        std::int32_t type = 0;
        const cublasStatus_t status = take(type, value, bytes);
        if (status == CUBLAS_STATUS_SUCCESS) desc->bias_type = type;
        return status;
      }
      default:
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
  });
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type, std::uint64_t rows,
                                          std::uint64_t columns, std::int64_t leading_dimension) {
  return counted_cublas("cublasLtMatrixLayoutCreate", [&](Machine& m) {
    return create(m, layout, static_cast<std::int32_t>(type), rows, columns, leading_dimension);
  });
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  return destroy("cublasLtMatrixLayoutDestroy", layout);
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute, const void* value,
                                                std::size_t bytes) {
  return counted_cublas("cublasLtMatrixLayoutSetAttribute", [&](Machine& m) {
    if (!all_alive(m, layout)) return CUBLAS_STATUS_INVALID_VALUE;
    std::int32_t order = 0;
    switch (attribute) {
      case CUBLASLT_MATRIX_LAYOUT_TYPE:
        return take(layout->type, value, bytes);
      case CUBLASLT_MATRIX_LAYOUT_ROWS:
        return take(layout->rows, value, bytes);
      case CUBLASLT_MATRIX_LAYOUT_COLS:
        return take(layout->columns, value, bytes);
      case CUBLASLT_MATRIX_LAYOUT_LD:
        return take(layout->leading, value, bytes);
      case CUBLASLT_MATRIX_LAYOUT_ORDER:
        if (take(order, value, bytes) != CUBLAS_STATUS_SUCCESS) return CUBLAS_STATUS_INVALID_VALUE;
        return order == CUBLASLT_ORDER_COL ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
    }
    return CUBLAS_STATUS_NOT_SUPPORTED;
  });
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  return counted_cublas("cublasLtMatmulPreferenceCreate", [&](Machine& m) { return create(m, preference); });
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  return destroy("cublasLtMatmulPreferenceDestroy", preference);
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void* value,
                                                    std::size_t bytes) {
  return counted_cublas("cublasLtMatmulPreferenceSetAttribute", [&](Machine& m) {
    if (!all_alive(m, preference)) return CUBLAS_STATUS_INVALID_VALUE;
    std::uint32_t ignored = 0;
    switch (attribute) {
      case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
        return take(preference->workspace_bytes, value, bytes);
      case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
      case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
      case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
      case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
        return take(preference->alignment[attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES], value, bytes);
      default:
        return take(ignored, value, bytes);
    }
  });
}
