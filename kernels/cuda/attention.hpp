// Attention over paged keys and values on CUDA: appends K and V of the rows to their pages, then attends.
//
// Work is divided by an AttentionPlan, made once per set_rows and uploaded with the rows. Everything is queued on
// `stream`; nothing here allocates device memory, waits, or keeps state. Two families of kernels: tensor cores for
// tiles of up to 64 rows of a sequence (attention_tiles.cu), and CUDA cores for single rows and for everything that
// must not or cannot be multiplied in 16 bits: float32 pages, float32 queries that may not be rounded, head_dim above
// 128 (attention_rows.cu).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/backend.hpp"
#include "kernels/cuda/attention_plan.hpp"
#include "kernels/cuda/device_rows.hpp"
#include "kernels/cuda/own_memory.hpp"

namespace stagecoach::cuda {

struct AttentionOptions {
  float scale = 1.0F;
  // float32 queries may be rounded to the dtype of 16-bit pages. Queries of 16 bits are rounded to it in any case.
  bool may_round_queries = false;
};

// Throw std::invalid_argument for shapes, dtypes and plans that do not fit each other; the operations begin with them.
void check_append(const DeviceRows& rows, Tensor qkv, const KvPages& kv);
void check_attention(const DeviceRows& rows, const AttentionPlan& plan, Tensor qkv, const KvPages& kv,
                     const AttentionOptions& options, Tensor out);

// out(r, head) = softmax(scale * q k^T) v over positions 0..positions[r]. qkv (rows, 3 * n_head * head_dim) and
// out (rows, n_head * head_dim) have one dtype out of float32, float16, bfloat16. `plan_words` is the device copy of
// plan.words(); `scratch` has attention_scratch_bytes(rows, ...) and is free again when the call's kernels are done.
// The plan is of the rows whose position is not negative. Keys and values, also those of the call's own rows, are read
// from the pages.
void attention(cudaStream_t stream, const DeviceRows& rows, const AttentionPlan& plan, const std::int32_t* plan_words,
               Tensor qkv, const KvPages& kv, const AttentionOptions& options, Tensor out, void* scratch);

// Appends K and V of the rows whose page is not kElsewhere.
void append(cudaStream_t stream, const DeviceRows& rows, Tensor qkv, const KvPages& kv);

// The parts (backend.hpp) of some of the rows, according to a plan of parts; otherwise as attention, but nothing is
// appended. parts is (plan.results(), part_width), float32.
void check_attention_parts(const DeviceRows& rows, const AttentionPlan& plan, Tensor qkv, const KvPages& kv,
                           const AttentionOptions& options, Tensor parts);
void attention_parts(cudaStream_t stream, const DeviceRows& rows, const AttentionPlan& plan,
                     const std::int32_t* plan_words, Tensor qkv, const KvPages& kv, const AttentionOptions& options,
                     Tensor parts, void* scratch);

// Row r of `out` from the parts numbers[first[r]] to numbers[first[r + 1] - 1]; `words` is device memory: `first`
// (out.rows + 1), then `numbers`.
void merge_parts(cudaStream_t stream, Tensor parts, std::int32_t n_head, const std::int32_t* words, Tensor out);

// Makes the contents of page `to` those of page `from`.
void copy_page(cudaStream_t stream, const KvPages& kv, std::int32_t from, std::int32_t to);

}  // namespace stagecoach::cuda
