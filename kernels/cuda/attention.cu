// Attention: appending, combining, and which kernels attend.
//
//   append   page(position)[which, head, position % 64, :] = qkv[row, (1 + which) * width + head * head_dim + :]
//   combine  result[head] = o / l of the row's partial results merged in order, or as a part (o, m, l)
//   merge    out[row, head] = o / l of the row's parts merged in order
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
  if (page == kElsewhere) return;
  append_vector<T>(call, row, position, page, which, head, column);
}

// Of a row and a column.
struct ColumnState {
  float largest = -INFINITY;
  float sum = 0.0F;
  float value = 0.0F;

  __device__ void merge(const MergeFactors& factors, float next_sum, float next_value) {
    largest = factors.largest;
    sum = merged(factors, sum, next_sum);
    value = merged(factors, value, next_value);
  }
};

// Block (row, head); the thread owns columns.
__global__ void __launch_bounds__(kAttentionThreads) combine(AttentionCall call) {
  const AttentionCombine plan = call.combines[blockIdx.x];
  const int head = static_cast<int>(blockIdx.y);
  if (plan.parts == 0) return;
  const std::int64_t begin = plan.result * call.out_stride;
  const int together = call.restart_pages > 0 ? kSegmentPages / call.restart_pages : plan.parts;  // of a segment
  for (int column = static_cast<int>(threadIdx.x); column < call.layout.head_dim;
       column += static_cast<int>(blockDim.x)) {
    ColumnState all;
    for (int first = 0; first < plan.parts; first += together) {
      ColumnState segment;
      const int end = min(first + together, plan.parts);
#pragma unroll 8
      for (int part = first; part < end; ++part) {
        const std::int64_t partial = plan.first_partial + std::int64_t{part} * plan.stride;
        const float* summary = call.partial_summary(partial, head);
        segment.merge(merge_factors(segment.largest, summary[0]), summary[1],
                      call.partial_values(partial, head)[column]);
      }
      all.merge(merge_segment_factors(all.largest, natural_score(segment.largest)), segment.sum, segment.value);
    }
    if (call.in_parts && column == 0) store_part_summary(call, begin, head, all.largest, all.sum);
    store_activation(call.out, call.out_dtype, begin + std::int64_t{head} * call.layout.head_dim + column,
                     normalized(all.value, result_factor(call, all.sum)));
  }
}

struct MergeCall {
  const float* parts = nullptr;  // (their number, part_width)
  std::int64_t parts_stride = 0;
  const std::int32_t* first = nullptr;    // (rows + 1) of a row's numbers
  const std::int32_t* numbers = nullptr;  // of the parts
  void* out = nullptr;                    // (rows, n_head * head_dim) of `out_dtype`
  std::int64_t out_stride = 0;
  DType out_dtype = DType::kFloat32;
  std::int32_t n_head = 0;
  std::int32_t head_dim = 0;
};

// Block (row, head); the thread owns columns.
__global__ void __launch_bounds__(kAttentionThreads) merge(MergeCall call) {
  const std::int64_t row = blockIdx.x;
  const std::int64_t head = blockIdx.y;
  const std::int32_t begin = call.first[row];
  const std::int32_t end = call.first[row + 1];
  for (int column = static_cast<int>(threadIdx.x); column < call.head_dim; column += static_cast<int>(blockDim.x)) {
    ColumnState all;
#pragma unroll 8
    for (std::int32_t i = begin; i < end; ++i) {
      const float* part = call.parts + call.numbers[i] * call.parts_stride;
      const float* summary = part + std::int64_t{call.n_head} * call.head_dim + 2 * head;
      all.merge(merge_segment_factors(all.largest, summary[0]), summary[1], part[head * call.head_dim + column]);
    }
    store_activation(call.out, call.out_dtype, row * call.out_stride + head * call.head_dim + column,
                     normalized(all.value, 1.0F / all.sum));
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

// A block's threads own the columns of a head.
Grid grid_of_columns(std::int64_t rows, std::int32_t n_head, std::int32_t head_dim) {
  const int threads = std::min((head_dim + kWarp - 1) / kWarp * kWarp, kAttentionThreads);
  return {dim3(static_cast<unsigned>(rows), static_cast<unsigned>(n_head)), dim3(static_cast<unsigned>(threads))};
}

// But for scale and output.
AttentionCall make_call(const DeviceRows& rows, Tensor qkv, const KvPages& kv) {
  AttentionCall call;
  call.rows = rows;
  call.qkv = qkv.data;
  call.qkv_stride = qkv.stride;
  call.dtype = qkv.dtype;
  const std::int64_t aligned = 16 / size_of(qkv.dtype);
  call.qkv_vectors =
      kv.head_dim % 8 == 0 && qkv.stride % aligned == 0 && reinterpret_cast<std::uintptr_t>(qkv.data) % 16 == 0;
  call.pages = static_cast<std::byte*>(kv.base);
  call.layout = kv_layout(kv.n_head, kv.head_dim, kv.dtype);
  return call;
}

AttentionCall make_call(const DeviceRows& rows, Tensor qkv, const KvPages& kv, const AttentionOptions& options,
                        Tensor out, void* scratch) {
  AttentionCall call = make_call(rows, qkv, kv);
  call.out = out.data;
  call.out_stride = out.stride;
  call.out_dtype = out.dtype;
  call.out_pairs =
      kv.head_dim % 2 == 0 && out.stride % 2 == 0 &&
      reinterpret_cast<std::uintptr_t>(out.data) % static_cast<std::uintptr_t>(2 * size_of(out.dtype)) == 0;
  call.scale = std::max(std::abs(options.scale) * std::numbers::log2e_v<float>, FLT_MIN);  // masks are scale * -inf
  call.query_sign = options.scale < 0.0F ? -1.0F : 1.0F;
  call.values = static_cast<float*>(scratch);
  // Behind the room that plans of so many rows may need, so that plans of one shape queue the same launches.
  call.summary = call.values + AttentionPlan::partials_limit(rows.rows) * kv.n_head * call.layout.padded_dim;
  return call;
}

// What the plan says; a plan of whole rows begins with their K and V.
void run(cudaStream_t stream, AttentionCall call, const AttentionPlan& plan, const std::int32_t* plan_words,
         DType kv_dtype, bool may_round_queries) {
  call.combines = reinterpret_cast<const AttentionCombine*>(plan_words + plan.combines_offset());
  const auto* tiles = reinterpret_cast<const AttentionItem*>(plan_words);
  const auto* singles = reinterpret_cast<const AttentionItem*>(plan_words + plan.singles_offset());
  const bool halves = tiles_possible(call.layout, kv_dtype) && (call.dtype != DType::kFloat32 || may_round_queries);
  const bool singles_on_tiles = halves && plan.deterministic();
  call.in_parts = plan.in_parts();
  call.appends = plan.shape().tiles == 0 && plan.independent() && !singles_on_tiles;
  if (!call.appends && !call.in_parts) launch_append(stream, call, kv_dtype);
  call.restart_pages = plan.restart_pages();
  call.merges_segments = plan.merges_segments();
  call.items = tiles;
  if (halves) {
    attend_tiles(stream, call, kv_dtype, plan.shape().tiles);
  } else {
    attend_rows(stream, call, kv_dtype, plan.shape().tiles, true);
  }
  call.items = singles;
  if (singles_on_tiles) {
    attend_tiles(stream, call, kv_dtype, plan.shape().singles);
  } else {
    attend_rows(stream, call, kv_dtype, plan.shape().singles, false);
  }
  launch(stream, grid_of_columns(plan.shape().combines, call.layout.n_head, call.layout.head_dim), combine, call);
}

}  // namespace

void attention(cudaStream_t stream, const DeviceRows& rows, const AttentionPlan& plan, const std::int32_t* plan_words,
               Tensor qkv, const KvPages& kv, const AttentionOptions& options, Tensor out, void* scratch) {
  check_attention(rows, plan, qkv, kv, options, out);
  run(stream, make_call(rows, qkv, kv, options, out, scratch), plan, plan_words, kv.dtype, options.may_round_queries);
}

void append(cudaStream_t stream, const DeviceRows& rows, Tensor qkv, const KvPages& kv) {
  check_append(rows, qkv, kv);
  launch_append(stream, make_call(rows, qkv, kv), kv.dtype);
}

void attention_parts(cudaStream_t stream, const DeviceRows& rows, const AttentionPlan& plan,
                     const std::int32_t* plan_words, Tensor qkv, const KvPages& kv, const AttentionOptions& options,
                     Tensor parts, void* scratch) {
  check_attention_parts(rows, plan, qkv, kv, options, parts);
  run(stream, make_call(rows, qkv, kv, options, parts, scratch), plan, plan_words, kv.dtype, options.may_round_queries);
}

void merge_parts(cudaStream_t stream, Tensor parts, std::int32_t n_head, const std::int32_t* words, Tensor out) {
  MergeCall call;
  call.parts = static_cast<const float*>(parts.data);
  call.parts_stride = parts.stride;
  call.first = words;
  call.numbers = words + out.rows + 1;
  call.out = out.data;
  call.out_stride = out.stride;
  call.out_dtype = out.dtype;
  call.n_head = n_head;
  call.head_dim = static_cast<std::int32_t>(out.cols / n_head);
  check_head(call.n_head, call.head_dim, out.dtype);
  launch(stream, grid_of_columns(out.rows, call.n_head, call.head_dim), merge, call);
}

void copy_page(cudaStream_t stream, const KvPages& kv, std::int32_t from, std::int32_t to) {
  const std::int64_t bytes = kv_page_bytes(kv.n_head, kv.head_dim, kv.dtype);
  auto* base = static_cast<std::byte*>(kv.base);
  check(cudaMemcpyAsync(base + to * bytes, base + from * bytes, static_cast<std::size_t>(bytes),
                        cudaMemcpyDeviceToDevice, stream));
}

}  // namespace stagecoach::cuda
