// Operations of one pass over rows: embedding, layer norm, gathering, and laying out weights. Shapes were checked.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/backend.hpp"

namespace stagecoach::cuda {

// out(r, :) = wte(:, tokens[r]) + wpe(positions[r], :); tokens and positions (out.rows) lie on the device.
void embed(cudaStream_t stream, const std::int32_t* tokens, const std::int32_t* positions, const Matrix& wte,
           Tensor wpe, Tensor out);
void layer_norm(cudaStream_t stream, Tensor x, Tensor gain, Tensor bias, float epsilon, Tensor out);
// out(i, :) = x(rows[i], :), float32; `rows` (out.rows) on the device.
void gather(cudaStream_t stream, Tensor x, const std::int32_t* rows, Tensor out);
// `source` converted into `target`, or into its transpose; both on the device, of any floating-point dtypes.
void lay_out(cudaStream_t stream, Tensor source, bool transposed, Tensor target);

}  // namespace stagecoach::cuda
