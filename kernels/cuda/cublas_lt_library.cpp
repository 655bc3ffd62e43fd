// cuBLASLt's functions, out of its library once a GPU is first used. Linked, its half gigabyte costs every process that
// starts 0.15 s of processor time and 100 MB for relocations (CUDA 13), also where ranks compute on CPUs.
#include <cublasLt.h>
#include <dlfcn.h>
#include <fmt/format.h>

#include <initializer_list>
#include <string>

#include "kernels/backend.hpp"

namespace {

// As the dynamic linker finds libraries, or where it was when this was built. DeviceError where there is none.
void* library() {
  static void* const loaded = [] {
    const std::string name = fmt::format("libcublasLt.so.{}", CUBLAS_VER_MAJOR);
    std::string why;
    for (const std::string& path : {name, fmt::format("{}/{}", STAGECOACH_CUDA_LIBRARIES, name)}) {
      if (void* found = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) return found;
      if (why.empty()) why = dlerror();
    }
    throw stagecoach::DeviceError(fmt::format(
        "cuBLASLt cannot be loaded: {} (LD_LIBRARY_PATH can name its folder; --device cpu does without)", why));
  }();
  return loaded;
}

// Calls the library's function of that name, which is declared as `Declared`.
template <auto Declared, typename... Arguments>
auto call(const char* name, Arguments... arguments) {
  static const auto found = [name] {
    if (void* function = dlsym(library(), name)) return reinterpret_cast<decltype(Declared)>(function);
    throw stagecoach::DeviceError(fmt::format("cuBLASLt has no {}: older than what this was built with", name));
  }();
  return found(arguments...);
}

}  // namespace

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  return call<cublasLtCreate>("cublasLtCreate", handle);
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  return call<cublasLtDestroy>("cublasLtDestroy", handle);
}

const char* cublasLtGetStatusString(cublasStatus_t status) {
  return call<cublasLtGetStatusString>("cublasLtGetStatusString", status);
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t description, const void* alpha,
                              const void* a, cublasLtMatrixLayout_t a_layout, const void* b,
                              cublasLtMatrixLayout_t b_layout, const void* beta, const void* c,
                              cublasLtMatrixLayout_t c_layout, void* d, cublasLtMatrixLayout_t d_layout,
                              const cublasLtMatmulAlgo_t* algorithm, void* workspace, size_t workspace_bytes,
                              cudaStream_t stream) {
  return call<cublasLtMatmul>("cublasLtMatmul", handle, description, alpha, a, a_layout, b, b_layout, beta, c, c_layout,
                              d, d_layout, algorithm, workspace, workspace_bytes, stream);
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t description,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int most,
                                              cublasLtMatmulHeuristicResult_t results[], int* found) {
  return call<cublasLtMatmulAlgoGetHeuristic>("cublasLtMatmulAlgoGetHeuristic", handle, description, a, b, c, d,
                                              preference, most, results, found);
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* description, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  return call<cublasLtMatmulDescCreate>("cublasLtMatmulDescCreate", description, compute, scale);
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t description) {
  return call<cublasLtMatmulDescDestroy>("cublasLtMatmulDescDestroy", description);
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t description,
                                              cublasLtMatmulDescAttributes_t attribute, const void* value,
                                              size_t bytes) {
  return call<cublasLtMatmulDescSetAttribute>("cublasLtMatmulDescSetAttribute", description, attribute, value, bytes);
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  return call<cublasLtMatmulPreferenceCreate>("cublasLtMatmulPreferenceCreate", preference);
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  return call<cublasLtMatmulPreferenceDestroy>("cublasLtMatmulPreferenceDestroy", preference);
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void* value,
                                                    size_t bytes) {
  return call<cublasLtMatmulPreferenceSetAttribute>("cublasLtMatmulPreferenceSetAttribute", preference, attribute,
                                                    value, bytes);
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type, uint64_t rows,
                                          uint64_t cols, int64_t ld) {
  return call<cublasLtMatrixLayoutCreate>("cublasLtMatrixLayoutCreate", layout, type, rows, cols, ld);
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  return call<cublasLtMatrixLayoutDestroy>("cublasLtMatrixLayoutDestroy", layout);
}
