// Products of a matrix with few rows, which stream the weights once at the memory's speed, and any product whose rows
// must not depend on their number. Shapes were checked.
//
// A row's sums are taken in an order that depends on the matrix's shape and dtype alone. `epilogue` and `bias` as in
// Backend::linear.
#pragma once

#include <cuda_runtime.h>

#include "kernels/backend.hpp"

namespace stagecoach::cuda {

// Rows up to which these kernels are faster than cuBLASLt.
inline constexpr std::int64_t kFewRows = 16;

void few_rows_linear(cudaStream_t stream, Tensor x, const Matrix& w, Tensor bias, Epilogue epilogue, Tensor out);

// out = activation(sums + bias), for what a product cannot do itself: `sums` is float32 and may be `out`, bias may be
// empty.
void finish_linear(cudaStream_t stream, Tensor sums, Tensor bias, Activation activation, Tensor out);

}  // namespace stagecoach::cuda
