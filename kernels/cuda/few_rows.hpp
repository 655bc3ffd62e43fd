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

// As layer_norm of x (float32) into rows of w's dtype and few_rows_linear of those, at once and with the same bits; for
// what norm_fits_few_rows says.
bool norm_fits_few_rows(Tensor x, const Matrix& w);
void norm_few_rows_linear(cudaStream_t stream, Tensor x, Tensor gain, Tensor bias, float epsilon, const Matrix& w,
                          Tensor w_bias, Epilogue epilogue, Tensor out);

// out = activation(sums + bias), for what a product cannot do itself: `sums` is float32 and may be `out`, bias may be
// empty.
void finish_linear(cudaStream_t stream, Tensor sums, Tensor bias, Activation activation, Tensor out);

}  // namespace stagecoach::cuda
