// cuBLASLt's products: the choice of an algorithm, checks, and queueing.
#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "tests/cuda_emulation/cublas_lt_matmul.hpp"
#include "tests/cuda_emulation/cublas_lt_objects.hpp"

namespace emulation = stagecoach::cuda_emulation;
using emulation::all_alive;
using emulation::counted_cublas;
using emulation::Element;
using emulation::Machine;
using emulation::take;

namespace {

// What the words of an algorithm mean here.
enum Word : std::uint8_t { kMagic, kSplits, kAlignment, kDepth, kOutputs, kOther = 5 };
constexpr std::uint64_t kAlgoMagic = 0x53746167654C74u;
constexpr std::uint64_t kMaxAlignment = 16;  // that any algorithm asks for

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
  return counted<emulation::Kind::kReleases>(name, [&](Machine& m) {
    return m.cublas_objects.erase(handle) == 1 ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
  });
}
std::optional<Element> element(std::int32_t type) {
  if (type == CUDA_R_32F) return Element::kFloat32;
  if (type == CUDA_R_16F) return Element::kHalf;
  if (type == CUDA_R_16BF) return Element::kBFloat16;
  return std::nullopt;
}

using Layout = cublasLtMatrixLayoutOpaque;
emulation::MatrixView view(const Layout& layout, const void* data) {
  return {data, *element(layout.type), layout.rows, layout.columns, static_cast<std::size_t>(layout.leading)};
}
std::size_t extent(const Layout& layout) {
  return ((layout.columns - 1) * static_cast<std::size_t>(layout.leading) + layout.rows) *
         emulation::bytes_of(*element(layout.type));
}

// What can be said without pointers.
cublasStatus_t check(const cublasLtMatmulDescOpaque& desc, const Layout& a, const Layout& b, const Layout& c,
                     const Layout& d) {
  for (const Layout* layout : {&a, &b, &c, &d}) {
    if (!element(layout->type)) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (layout->rows == 0 || layout->columns == 0 || layout->leading < static_cast<std::int64_t>(layout->rows)) {
      return CUBLAS_STATUS_INVALID_VALUE;
    }
  }
  const bool ta = desc.trans_a != CUBLAS_OP_N, tb = desc.trans_b != CUBLAS_OP_N;
  if ((ta ? a.columns : a.rows) != d.rows || (tb ? b.rows : b.columns) != d.columns ||
      (ta ? a.rows : a.columns) != (tb ? b.columns : b.rows) || c.rows != d.rows || c.columns != d.columns) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  if (a.type != b.type || c.type != d.type || (d.type != a.type && d.type != CUDA_R_32F)) {
    return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  switch (desc.epilogue) {
    case CUBLASLT_EPILOGUE_DEFAULT:
    case CUBLASLT_EPILOGUE_RELU:
    case CUBLASLT_EPILOGUE_GELU:
    case CUBLASLT_EPILOGUE_BIAS:
    case CUBLASLT_EPILOGUE_RELU_BIAS:
    case CUBLASLT_EPILOGUE_GELU_BIAS:
      break;
    default:
      return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  const std::int32_t bias = desc.bias_type.value_or(d.type);
  return bias == d.type || bias == CUDA_R_32F ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

std::uint64_t depth(const cublasLtMatmulDescOpaque& desc, const Layout& a) {
  return desc.trans_a != CUBLAS_OP_N ? a.rows : a.columns;
}
std::size_t workspace_for(std::uint64_t splits, const Layout& d) {
  return splits > 1 ? splits * d.rows * d.columns * sizeof(float) : 0;
}

struct Pointers {
  const void *a, *b, *c, *d;
};
bool aligned(const void* pointer, std::uint64_t bytes) {
  return reinterpret_cast<std::uintptr_t>(pointer) % bytes == 0;
}

cublasStatus_t check_algo(const cublasLtMatmulAlgo_t& algo, const cublasLtMatmulDescOpaque& desc, const Layout& a,
                          const Layout& d) {
  if (algo.data[kMagic] != kAlgoMagic) return CUBLAS_STATUS_INVALID_VALUE;
  if (algo.data[kSplits] == 0 || algo.data[kSplits] > depth(desc, a)) return CUBLAS_STATUS_NOT_SUPPORTED;
  // Algorithms are chosen for a shape; the emulation insists on it where the library might do.
  const bool same = algo.data[kDepth] == depth(desc, a) && algo.data[kOutputs] == d.rows;
  return same ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

}  // namespace

// ---- algorithms: one that sums k in one piece, and where the workspace allows it one that sums two halves ----
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int requested,
                                              cublasLtMatmulHeuristicResult_t results[], int* returned) {
  return counted_cublas("cublasLtMatmulAlgoGetHeuristic", [&](Machine& m) {
    if (!all_alive(m, handle)) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (returned == nullptr || results == nullptr || requested < 1 || !all_alive(m, desc, a, b, c, d, preference)) {
      return CUBLAS_STATUS_INVALID_VALUE;
    }
    *returned = 0;
    const cublasStatus_t status = check(*desc, *a, *b, *c, *d);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    std::uint64_t alignment = 0;
    for (std::size_t i = 0; i < 4; ++i) {
      alignment |= std::min<std::uint64_t>(kMaxAlignment, std::max(preference->alignment[i], 1u)) << (16 * i);
    }
    for (const std::uint64_t splits : {1u, 2u}) {
      const std::size_t workspace = workspace_for(splits, *d);
      if (*returned == requested || splits > depth(*desc, *a) || workspace > preference->workspace_bytes) break;
      cublasLtMatmulHeuristicResult_t& result = results[(*returned)++];
      result = {};
      result.algo.data[kMagic] = kAlgoMagic;
      result.algo.data[kSplits] = splits;
      result.algo.data[kAlignment] = alignment;
      result.algo.data[kDepth] = depth(*desc, *a);
      result.algo.data[kOutputs] = d->rows;
      result.workspaceSize = workspace;
      result.state = CUBLAS_STATUS_SUCCESS;
      result.wavesCount = 1.0f;
    }
    return CUBLAS_STATUS_SUCCESS;
  });
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
                                       cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t* algo, cublasLtMatmulHeuristicResult_t* result) {
  return counted_cublas("cublasLtMatmulAlgoCheck", [&](Machine& m) {
    if (!all_alive(m, handle)) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (algo == nullptr || result == nullptr || !all_alive(m, desc, a, b, c, d)) return CUBLAS_STATUS_INVALID_VALUE;
    cublasStatus_t status = check(*desc, *a, *b, *c, *d);
    if (status == CUBLAS_STATUS_SUCCESS) status = check_algo(*algo, *desc, *a, *d);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    const cublasLtMatmulAlgo_t same = *algo;  // which may lie in `result`
    *result = {};
    result->algo = same;
    result->workspaceSize = workspace_for(same.data[kSplits], *d);
    result->wavesCount = 1.0f;
    return CUBLAS_STATUS_SUCCESS;
  });
}

cublasStatus_t cublasLtMatmulAlgoConfigSetAttribute(cublasLtMatmulAlgo_t* algo,
                                                    cublasLtMatmulAlgoConfigAttributes_t attribute, const void* value,
                                                    std::size_t bytes) {
  return counted_cublas("cublasLtMatmulAlgoConfigSetAttribute", [&](Machine&) {
    std::uint32_t word = 0;
    if (algo == nullptr || take(word, value, bytes) != CUBLAS_STATUS_SUCCESS) return CUBLAS_STATUS_INVALID_VALUE;
    if (attribute == CUBLASLT_ALGO_CONFIG_SPLITK_NUM) {
      algo->data[kSplits] = std::max(word, 1u);
    } else {
      algo->data[kOther] = word;  // one of them is remembered; they change nothing
    }
    return CUBLAS_STATUS_SUCCESS;
  });
}
cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t* algo,
                                                    cublasLtMatmulAlgoConfigAttributes_t attribute, void* value,
                                                    std::size_t bytes, std::size_t* written) {
  return counted_cublas("cublasLtMatmulAlgoConfigGetAttribute", [&](Machine&) {
    if (algo == nullptr || value == nullptr || bytes < sizeof(std::uint32_t)) return CUBLAS_STATUS_INVALID_VALUE;
    const auto word =
        static_cast<std::uint32_t>(algo->data[attribute == CUBLASLT_ALGO_CONFIG_SPLITK_NUM ? kSplits : kOther]);
    std::memcpy(value, &word, sizeof(word));
    if (written != nullptr) *written = sizeof(word);
    return CUBLAS_STATUS_SUCCESS;
  });
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void* alpha, const void* a,
                              cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout,
                              const void* beta, const void* c, cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algo, void* workspace,
                              std::size_t workspace_bytes, cudaStream_t stream) {
  return counted_cublas("cublasLtMatmul", [&](Machine& m) {
    std::uint64_t stream_id = 0;
    int device = 0;
    if (!all_alive(m, handle)) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (alpha == nullptr || beta == nullptr || !all_alive(m, desc, a_layout, b_layout, c_layout, d_layout) ||
        !m.find_stream(stream, stream_id, device)) {
      return CUBLAS_STATUS_INVALID_VALUE;
    }
    cublasStatus_t status = check(*desc, *a_layout, *b_layout, *c_layout, *d_layout);
    if (status == CUBLAS_STATUS_SUCCESS && algo != nullptr) status = check_algo(*algo, *desc, *a_layout, *d_layout);
    if (status != CUBLAS_STATUS_SUCCESS) return status;

    emulation::Product p;
    std::memcpy(&p.alpha, alpha, sizeof(float));
    std::memcpy(&p.beta, beta, sizeof(float));
    const std::uint64_t alignment = algo != nullptr ? algo->data[kAlignment] : 0x0010001000100010u;
    const std::pair<const void*, const Layout*> operands[] = {
        {a, a_layout}, {b, b_layout}, {p.beta != 0 ? c : d, c_layout}, {d, d_layout}};
    for (std::size_t i = 0; i < 4; ++i) {
      const auto& [pointer, layout] = operands[i];
      if (m.device_of(pointer) != device || !m.device_range(pointer, extent(*layout))) {
        return CUBLAS_STATUS_INVALID_VALUE;
      }
      if (!aligned(pointer, (alignment >> (16 * i)) & 0xFFFFu)) return CUBLAS_STATUS_INVALID_VALUE;
    }
    if (c == d && (c_layout->leading != d_layout->leading || c_layout->type != d_layout->type)) {
      return CUBLAS_STATUS_INVALID_VALUE;
    }
    p.splits = algo != nullptr ? algo->data[kSplits] : 1;
    const std::size_t needed = workspace_for(p.splits, *d_layout);
    if (needed > workspace_bytes || (workspace_bytes > 0 && !m.device_range(workspace, workspace_bytes)) ||
        !aligned(workspace, kMaxAlignment)) {
      return CUBLAS_STATUS_INVALID_VALUE;
    }
    if ((desc->epilogue & CUBLASLT_EPILOGUE_BIAS) != 0) {
      p.bias = desc->bias;
      p.bias_type = *element(desc->bias_type.value_or(d_layout->type));
      if (!m.device_range(p.bias, d_layout->rows * emulation::bytes_of(p.bias_type)))
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    if ((desc->epilogue & CUBLASLT_EPILOGUE_RELU) != 0) p.act = emulation::Act::kRelu;
    if ((desc->epilogue & CUBLASLT_EPILOGUE_GELU) != 0) p.act = emulation::Act::kGelu;
    p.a = view(*a_layout, a);
    p.b = view(*b_layout, b);
    p.c = view(*c_layout, c);
    p.d = view(*d_layout, d);
    p.out = d;
    p.transpose_a = desc->trans_a != CUBLAS_OP_N;
    p.transpose_b = desc->trans_b != CUBLAS_OP_N;
    const cudaError_t queued =
        m.submit(stream_id, {device, [p, workspace, needed] {
                               if (needed > 0)
                                 std::memset(workspace, 0xFF, needed);  // nobody else may use it meanwhile
                               emulation::multiply(p);
                               return cudaSuccess;
                             }});
    return queued == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
  });
}
