// Attention: appending, combining, and which kernels attend.
//
//   append   page(position)[which, head, position % 64, :] = qkv[row, (1 + which) * width + head * head_dim + :]
//   combine  out[row, head] = o / l of the row's partial results merged in order
#include "kernels/cuda/attention.hpp"

#include <algorithm>
#include <cfloat>
#include <numbers>

#include "kernels/cuda/attention_parts.cuh"
#include "kernels/cuda/check.hpp"
#include "kernels/cuda/launch.cuh"

namespace stagecoach::cuda {
namespace {

// Block (row, part of the row's vectors).
template <typename T>
__global__ void __launch_bounds__(kAttentionThreads) append(AttentionCall call) {
  const KvLayout& layout = call.layout;
  const std::int64_t row = blockIdx.x;
  const int vectors = layout.padded_dim / kVectorColumns;
  const int index = static_cast<int>(blockIdx.y) * kAttentionThreads + static_cast<int>(threadIdx.x);
  if (row >= call.rows.rows || index >= 2 * layout.n_head * vectors) return;
  const std::int32_t position = call.rows.positions[row];
  if (position < 0) return;
  const int column = index % vectors * kVectorColumns;
  const int head = index / vectors % layout.n_head;
  const int which = index / vectors / layout.n_head;
  const std::int64_t table = call.rows.sequences[row] * call.rows.table_stride;
  const std::int32_t page = call.rows.pages[table + position / kPagePositions];
  append_vector<T>(call, row, position, page, which, head, column);
}

// Block (row, head); the thread owns columns.
__global__ void __launch_bounds__(kAttentionThreads) combine(AttentionCall call) {
  const AttentionCombine plan = call.combines[blockIdx.x];
  const int head = static_cast<int>(blockIdx.y);
  if (plan.parts == 0) return;
  for (int column = static_cast<int>(threadIdx.x); column < call.layout.head_dim;
       column += static_cast<int>(blockDim.x)) {
    float largest = -INFINITY;
    float sum = 0.0F;
    float value = 0.0F;
#pragma unroll 8
    for (std::int64_t part = 0; part < plan.parts; ++part) {
      const std::int64_t partial = plan.first_partial + part * plan.stride;
      const float* summary = call.partial_summary(partial, head);
      const MergeFactors factors = merge_factors(largest, summary[0]);
      largest = factors.largest;
      sum = merged(factors, sum, summary[1]);
      value = merged(factors, value, call.partial_values(partial, head)[column]);
    }
    store_activation(call.out, call.dtype,
                     plan.row * call.out_stride + std::int64_t{head} * call.layout.head_dim + column,
                     normalized(value, 1.0F / sum));
  }
}

void launch_append(cudaStream_t stream, const AttentionCall& call, DType kv_dtype) {
  const int vectors = 2 * call.layout.n_head * (call.layout.padded_dim / kVectorColumns);
  const Grid grid{dim3(static_cast<unsigned>(call.rows.rows),
                       static_cast<unsigned>((vectors + kAttentionThreads - 1) / kAttentionThreads)),
                  dim3(kAttentionThreads)};
  if (kv_dtype == DType::kFloat32) return launch(stream, grid, append<float>, call);
  if (kv_dtype == DType::kFloat16) return launch(stream, grid, append<__half>, call);
  launch(stream, grid, append<__nv_bfloat16>, call);
}

void launch_combine(cudaStream_t stream, const AttentionCall& call, std::int32_t count) {
  const int threads = std::min((call.layout.head_dim + kWarp - 1) / kWarp * kWarp, kAttentionThreads);
  const dim3 blocks(static_cast<unsigned>(count), static_cast<unsigned>(call.layout.n_head));
  launch(stream, {blocks, dim3(static_cast<unsigned>(threads))}, combine, call);
}

AttentionCall make_call(const DeviceRows& rows, Tensor qkv, const KvPages& kv, const AttentionOptions& options,
                        Tensor out, void* scratch) {
  AttentionCall call;
  call.rows = rows;
  call.qkv = qkv.data;
  call.out = out.data;
  call.qkv_stride = qkv.stride;
  call.out_stride = out.stride;
  call.dtype = qkv.dtype;
  const std::int64_t aligned = 16 / size_of(qkv.dtype);
  call.qkv_vectors =
      kv.head_dim % 8 == 0 && qkv.stride % aligned == 0 && reinterpret_cast<std::uintptr_t>(qkv.data) % 16 == 0;
  call.out_pairs =
      kv.head_dim % 2 == 0 && out.stride % 2 == 0 &&
      reinterpret_cast<std::uintptr_t>(out.data) % static_cast<std::uintptr_t>(2 * size_of(out.dtype)) == 0;
  call.pages = static_cast<std::byte*>(kv.base);
  call.layout = kv_layout(kv.n_head, kv.head_dim, kv.dtype);
  call.scale = std::max(std::abs(options.scale) * std::numbers::log2e_v<float>, FLT_MIN);  // masks are scale * -inf
  call.query_sign = options.scale < 0.0F ? -1.0F : 1.0F;
  call.values = static_cast<float*>(scratch);
  return call;
}

}  // namespace

void attention(cudaStream_t stream, const DeviceRows& rows, const AttentionPlan& plan, const std::int32_t* plan_words,
               Tensor qkv, const KvPages& kv, const AttentionOptions& options, Tensor out, void* scratch) {
  check_attention(rows, plan, qkv, kv, options, out);
  AttentionCall call = make_call(rows, qkv, kv, options, out, scratch);
  // Behind the room that plans of so many rows may need, so that plans of one shape queue the same launches.
  call.summary = call.values + AttentionPlan::partials_limit(rows.rows) * kv.n_head * call.layout.padded_dim;
  call.combines = reinterpret_cast<const AttentionCombine*>(plan_words + plan.combines_offset());
  const auto* tiles = reinterpret_cast<const AttentionItem*>(plan_words);
  const auto* singles = reinterpret_cast<const AttentionItem*>(plan_words + plan.singles_offset());
  const bool halves =
      tiles_possible(call.layout, kv.dtype) && (qkv.dtype != DType::kFloat32 || options.may_round_queries);
  const bool singles_on_tiles = halves && plan.deterministic();
  call.appends = plan.shape().tiles == 0 && plan.independent() && !singles_on_tiles;
  if (!call.appends) launch_append(stream, call, kv.dtype);
  call.restart_pages = plan.restart_pages();
  call.items = tiles;
  if (halves) {
    attend_tiles(stream, call, kv.dtype, plan.shape().tiles);
  } else {
    attend_rows(stream, call, kv.dtype, plan.shape().tiles, true);
  }
  call.items = singles;
  if (singles_on_tiles) {
    attend_tiles(stream, call, kv.dtype, plan.shape().singles);
  } else {
    attend_rows(stream, call, kv.dtype, plan.shape().singles, false);
  }
  launch_combine(stream, call, plan.shape().combines);
}

void copy_page(cudaStream_t stream, const KvPages& kv, std::int32_t from, std::int32_t to) {
  const std::int64_t bytes = kv_page_bytes(kv.n_head, kv.head_dim, kv.dtype);
  auto* base = static_cast<std::byte*>(kv.base);
  check(cudaMemcpyAsync(base + to * bytes, base + from * bytes, static_cast<std::size_t>(bytes),
                        cudaMemcpyDeviceToDevice, stream));
}

}  // namespace stagecoach::cuda
