// Preconditions of the operations, checked at the border of every backend. Each throws std::invalid_argument
// that names the operation and the shapes it saw.
#pragma once

#include <span>

#include "kernels/backend.hpp"
#include "kernels/row_set.hpp"

namespace stagecoach {

void check_matrix_shape(std::int64_t in, std::int64_t out);
void check_load_rows(const Matrix& matrix, WeightLayout layout, std::int64_t first_row, Tensor host);
void check_load_panels(const Matrix& matrix, DType stored);
void check_embed(const RowSet& rows, const Matrix& wte, Tensor wpe, Tensor out);
void check_attention(const RowSet& rows, Tensor qkv, const KvPages& kv, Tensor out);
void check_append(const RowSet& rows, Tensor qkv, const KvPages& kv);
void check_attention_parts(const RowSet& rows, Tensor qkv, const KvPages& kv, std::int64_t first_row,
                           std::int64_t count, Tensor parts);
void check_merge_parts(Tensor parts, std::int32_t n_head, std::span<const std::int32_t> first,
                       std::span<const std::int32_t> numbers, Tensor out);
void check_copy_page(const KvPages& kv, std::int32_t from, std::int32_t to);
void check_layer_norm(Tensor x, Tensor gain, Tensor bias, Tensor out);
void check_linear(Tensor x, const Matrix& w, Tensor bias, Epilogue epilogue, Tensor out);
void check_gather(Tensor x, std::span<const std::int32_t> rows, Tensor out);
void check_summarize_logits(Tensor logits, std::span<const LogitsQuery> queries, const void* out);
// For backends without 16-bit activations.
void check_float32(Tensor x, Tensor out, const char* operation);

}  // namespace stagecoach
