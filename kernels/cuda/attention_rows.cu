// Attention of single rows, and of any rows whose products must be float32, on CUDA cores.
//
//   s_p = scale * q k_p;  out = sum_p 2^(s_p - m) v_p / sum_p 2^(s_p - m)
//
// A block has one item (rows of a sequence, a range of its pages) and one head, and works on kRows of the item's rows
// at a time. kLanes lanes share a key: each holds kVectors vectors of 16 bytes of its columns, so that a load
// instruction of the block reads consecutive keys. Key i of a page belongs to lane group i % (128 / kLanes). Each group
// reduces its own keys online; at the end of a part the groups' states are merged, lanes by shuffles, warps through
// shared memory.
//
// A single row whose call holds no other row of what it attends to appends its own K and V, before its last page.
//
// Segments end as parts do: their merged state is kept, and merged with that of the segments before.
//
// Decoding waits for memory: every thread has eight loads under way, and the plan puts several blocks on a
// multiprocessor. A row's operations do not depend on kRows, nor on the other rows of its item.
#include "kernels/cuda/attention_parts.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/machine.cuh"

namespace stagecoach::cuda {
namespace {

constexpr int kTogether = 4;  // rows of a tile that share loaded keys
constexpr int kBatch = 4;     // keys that a lane group loads at once
constexpr int kWarps = kAttentionThreads / kWarp;

template <typename T, int kLanesOfKey, int kVectorsOfLane, int kRowsOfBlock>
struct Shape {
  using Element = T;
  static constexpr int kLanes = kLanesOfKey;
  static constexpr int kVectors = kVectorsOfLane;
  static constexpr int kRows = kRowsOfBlock;
  static constexpr int kWidth = 16 / static_cast<int>(sizeof(T));  // elements of a vector
  static constexpr int kColumns = kVectors * kWidth;               // of a lane
  static constexpr int kGroups = kAttentionThreads / kLanes;
  static constexpr int kDim = kLanes * kColumns;                                     // the largest padded_dim
  static constexpr int kOwned = (kDim + kAttentionThreads - 1) / kAttentionThreads;  // columns of a thread in the end
  static_assert(kPagePositions % (kGroups * kBatch) == 0);
  // That a multiprocessor has registers for.
  static constexpr int kBlocks = kRows == 1 ? (kVectors == 1 ? 6 : 4) : sizeof(T) == 4 && kVectors == 1 ? 4 : 2;
};

// The rows of a block: where they are and how far they see.
template <typename S>
struct Rows {
  std::int32_t first, count;
  std::int32_t position[S::kRows];  // -1 where there is no row
  std::int32_t last;                // the highest of them
};

template <typename S>
struct State {
  float largest[S::kRows];
  float sum[S::kRows];
  float values[S::kRows][S::kColumns];

  __device__ void clear() {
#pragma unroll
    for (int r = 0; r < S::kRows; ++r) {
      largest[r] = -INFINITY;
      sum[r] = 0.0F;
#pragma unroll
      for (int c = 0; c < S::kColumns; ++c) values[r][c] = 0.0F;
    }
  }
};

// Column `c` of this thread: vectors of a position go round the lanes.
template <typename S>
__device__ inline int column_of(int c) {
  const int lane = static_cast<int>(threadIdx.x) % S::kLanes;
  return (c / S::kWidth * S::kLanes + lane) * S::kWidth + c % S::kWidth;
}

template <typename S>
__device__ Rows<S> find_rows(const AttentionCall& call, const AttentionItem& item, int first) {
  Rows<S> rows{item.first_row + first, min(S::kRows, item.rows - first), {}, 0};
#pragma unroll
  for (int r = 0; r < S::kRows; ++r) {
    // A single row's position need not be looked up.
    rows.position[r] = S::kRows == 1 ? item.last_position : r < rows.count ? call.rows.positions[rows.first + r] : -1;
    rows.last = max(rows.last, rows.position[r]);
  }
  return rows;
}

template <typename S>
__device__ void load_queries(const AttentionCall& call, const Rows<S>& rows, int head,
                             float (&queries)[S::kRows][S::kColumns]) {
#pragma unroll
  for (int r = 0; r < S::kRows; ++r) {
    const std::int64_t source = (rows.first + r) * call.qkv_stride + std::int64_t{head} * call.layout.head_dim;
#pragma unroll
    for (int c = 0; c < S::kColumns; ++c) {
      const int column = column_of<S>(c);
      const bool real = r < rows.count && column < call.layout.head_dim;
      const float q = real ? load_activation(call.qkv, call.dtype, source + column) : 0.0F;
      queries[r][c] = rounded_product(rounded_product(q, call.query_sign), call.scale);
    }
  }
}

// This thread's vectors of K or V of kBatch keys of a tile, `step` keys apart; zeros from the `valid`th on.
template <typename S>
__device__ inline void load_batch(const std::byte* tile, int position_bytes, int first_key, int valid,
                                  Vector (&vectors)[kBatch][S::kVectors]) {
  const int lane = static_cast<int>(threadIdx.x) % S::kLanes;
#pragma unroll
  for (int i = 0; i < kBatch; ++i) {
    const int key = first_key + i * S::kGroups;
#pragma unroll
    for (int j = 0; j < S::kVectors; ++j) {
      const int offset = (j * S::kLanes + lane) * 16;
      vectors[i][j] = Vector{};
      if (key < valid && offset < position_bytes) {
        vectors[i][j] = *reinterpret_cast<const Vector*>(tile + key * position_bytes + offset);
      }
    }
  }
}

// One row and one batch of keys, of which the first is at `position`.
template <typename S>
__device__ inline void attend_batch(State<S>& state, int r, const float (&query)[S::kColumns],
                                    std::int32_t row_position, std::int32_t position,
                                    const Vector (&keys)[kBatch][S::kVectors],
                                    const Vector (&values)[kBatch][S::kVectors]) {
  using T = typename S::Element;
  float scores[kBatch];
#pragma unroll
  for (int i = 0; i < kBatch; ++i) {
    scores[i] = 0.0F;
#pragma unroll
    for (int c = 0; c < S::kColumns; ++c) {
      scores[i] = fmaf(query[c], element<T>(keys[i][c / S::kWidth], c % S::kWidth), scores[i]);
    }
  }
#pragma unroll
  for (int offset = 1; offset < S::kLanes; offset *= 2) {
#pragma unroll
    for (float& score : scores) score += __shfl_xor_sync(kAllLanes, score, offset);
  }
  float largest = state.largest[r];
#pragma unroll
  for (int i = 0; i < kBatch; ++i) {
    if (position + i * S::kGroups > row_position) scores[i] = -INFINITY;
    largest = fmaxf(largest, scores[i]);
  }
  const float reference = reference_score(largest);
  const float keep = exp2f(state.largest[r] - reference);
  state.largest[r] = largest;
  state.sum[r] = rounded_product(state.sum[r], keep);
#pragma unroll
  for (int c = 0; c < S::kColumns; ++c) state.values[r][c] = rounded_product(state.values[r][c], keep);
#pragma unroll
  for (int i = 0; i < kBatch; ++i) {
    const float weight = exp2f(scores[i] - reference);
    state.sum[r] += weight;
#pragma unroll
    for (int c = 0; c < S::kColumns; ++c) {
      const float value = element<T>(values[i][c / S::kWidth], c % S::kWidth);
      state.values[r][c] = fmaf(weight, value, state.values[r][c]);
    }
  }
}

template <typename S>
__device__ void attend_page(const AttentionCall& call, const Rows<S>& rows, int head, int page, std::int32_t number,
                            const float (&queries)[S::kRows][S::kColumns], State<S>& state) {
  const std::byte* keys = call.pages + call.layout.tile(number, 0, head);
  const std::byte* values = call.pages + call.layout.tile(number, 1, head);
  const int position_bytes = static_cast<int>(call.layout.position_bytes());
  const int group = static_cast<int>(threadIdx.x) / S::kLanes;
  const int valid = min(rows.last + 1 - page * kPagePositions, kPagePositions);
  for (int first = 0; first < valid; first += S::kGroups * kBatch) {
    Vector batch_keys[kBatch][S::kVectors];
    Vector batch_values[kBatch][S::kVectors];
    load_batch<S>(keys, position_bytes, first + group, valid, batch_keys);
    load_batch<S>(values, position_bytes, first + group, valid, batch_values);
#pragma unroll
    for (int r = 0; r < S::kRows; ++r) {
      if (r > 0 && r >= rows.count) break;
      attend_batch<S>(state, r, queries[r], rows.position[r], page * kPagePositions + first + group, batch_keys,
                      batch_values);
    }
  }
}

// Merged states, column by column: thread i owns the columns i, i + 128. Every thread knows m and l.
template <typename S>
struct Merged {
  float largest[S::kRows];
  float sum[S::kRows];
  float values[S::kRows][S::kOwned];

  __device__ void clear() {
#pragma unroll
    for (int r = 0; r < S::kRows; ++r) {
      largest[r] = -INFINITY;
      sum[r] = 0.0F;
#pragma unroll
      for (float& value : values[r]) value = 0.0F;
    }
  }
};

// Shared memory of a warp's state of a row: m, l, o.
template <typename S>
__device__ inline float* shared_state(int warp, int r) {
  return reinterpret_cast<float*>(shared_memory()) + (warp * S::kRows + r) * (S::kDim + 2);
}
// Value `i` of a row that this thread keeps of the segments before: m, l, its columns.
template <typename S>
__device__ inline float& segments_before(int r, int i) {
  return shared_state<S>(kWarps, 0)[(r * (2 + S::kOwned) + i) * kAttentionThreads + static_cast<int>(threadIdx.x)];
}
template <typename S>
constexpr std::size_t shared_bytes(bool merges_segments) {
  const int states = kWarps * S::kRows * (S::kDim + 2);
  const int before = merges_segments ? kAttentionThreads * S::kRows * (2 + S::kOwned) : 0;
  return sizeof(float) * static_cast<std::size_t>(states + before);
}

// The states of a warp's lane groups become one, which goes to shared memory.
template <typename S>
__device__ void merge_groups(const State<S>& state, int r) {
  float largest = state.largest[r];
#pragma unroll
  for (int offset = S::kLanes; offset < kWarp; offset *= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, offset));
  }
  const float keep = exp2f(state.largest[r] - reference_score(largest));
  const auto total = [keep](float own) {
    float value = rounded_product(own, keep);
#pragma unroll
    for (int offset = S::kLanes; offset < kWarp; offset *= 2) value += __shfl_xor_sync(kAllLanes, value, offset);
    return value;
  };
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  float* shared = shared_state<S>(static_cast<int>(threadIdx.x) / kWarp, r);
  const float sum = total(state.sum[r]);
  if (lane == 0) {
    shared[0] = largest;
    shared[1] = sum;
  }
#pragma unroll
  for (int c = 0; c < S::kColumns; ++c) {
    const float value = total(state.values[r][c]);
    if (lane < S::kLanes) shared[2 + column_of<S>(c)] = value;
  }
}

// Ends a part: merges the block's states of it, and the parts before with the result.
template <typename S>
__device__ void merge_part(const Rows<S>& rows, const State<S>& state, Merged<S>& merged_state) {
#pragma unroll
  for (int r = 0; r < S::kRows; ++r) {
    if (r < rows.count) merge_groups<S>(state, r);
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < S::kRows; ++r) {
    if (r >= rows.count) break;
    float largest = -INFINITY;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) largest = fmaxf(largest, shared_state<S>(warp, r)[0]);
    float keep[kWarps];
    float sum = 0.0F;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) {
      keep[warp] = exp2f(shared_state<S>(warp, r)[0] - reference_score(largest));
      sum = fmaf(shared_state<S>(warp, r)[1], keep[warp], sum);
    }
    const MergeFactors factors = merge_factors(merged_state.largest[r], largest);
    merged_state.largest[r] = factors.largest;
    merged_state.sum[r] = merged(factors, merged_state.sum[r], sum);
#pragma unroll
    for (int i = 0; i < S::kOwned; ++i) {
      const int column = static_cast<int>(threadIdx.x) + i * kAttentionThreads;
      if (column >= S::kDim) break;
      float value = 0.0F;
#pragma unroll
      for (int warp = 0; warp < kWarps; ++warp) value = fmaf(shared_state<S>(warp, r)[2 + column], keep[warp], value);
      merged_state.values[r][i] = merged(factors, merged_state.values[r][i], value);
    }
  }
  __syncthreads();  // before the next part writes shared memory
}

// Merges the segments before, if there are `any`, with the one that ends.
template <typename S>
__device__ void merge_segments(Merged<S>& state, bool any) {
#pragma unroll
  for (int r = 0; r < S::kRows; ++r) {
    const float largest = natural_score(state.largest[r]);
    state.largest[r] = largest;
    if (!any) continue;
    const MergeFactors factors = merge_segment_factors(segments_before<S>(r, 0), largest);
    state.largest[r] = factors.largest;
    state.sum[r] = merged(factors, segments_before<S>(r, 1), state.sum[r]);
#pragma unroll
    for (int i = 0; i < S::kOwned; ++i) {
      state.values[r][i] = merged(factors, segments_before<S>(r, 2 + i), state.values[r][i]);
    }
  }
}
template <typename S>
__device__ void store_segments(const Merged<S>& state) {
#pragma unroll
  for (int r = 0; r < S::kRows; ++r) {
    segments_before<S>(r, 0) = state.largest[r];
    segments_before<S>(r, 1) = state.sum[r];
#pragma unroll
    for (int i = 0; i < S::kOwned; ++i) segments_before<S>(r, 2 + i) = state.values[r][i];
  }
}

template <typename S>
__device__ void write(const AttentionCall& call, const AttentionItem& item, const Rows<S>& rows, int head,
                      const Merged<S>& state) {
#pragma unroll
  for (int r = 0; r < S::kRows; ++r) {
    if (r >= rows.count) break;
    const int row = rows.first + r - item.first_row;
    const std::int64_t partial = std::int64_t{item.partial} + row;
    const std::int64_t begin = call.result_begin(item, row);
    const float inverse = result_factor(call, state.sum[r]);
    if (item.partial >= 0 && threadIdx.x == 0) {
      call.partial_summary(partial, head)[0] = state.largest[r];
      call.partial_summary(partial, head)[1] = state.sum[r];
    } else if (call.in_parts && threadIdx.x == 0) {
      store_part_summary(call, begin, head, natural_score(state.largest[r]), state.sum[r]);
    }
#pragma unroll
    for (int i = 0; i < S::kOwned; ++i) {
      const int column = static_cast<int>(threadIdx.x) + i * kAttentionThreads;
      if (column >= call.layout.head_dim) break;
      if (item.partial >= 0) {
        call.partial_values(partial, head)[column] = state.values[r][i];
      } else {
        store_activation(call.out, call.out_dtype, begin + std::int64_t{head} * call.layout.head_dim + column,
                         normalized(state.values[r][i], inverse));
      }
    }
  }
}

// K and V of a single row's own position; the block's other threads see them after a barrier.
template <typename S>
__device__ void append_own(const AttentionCall& call, const AttentionItem& item, int head, std::int32_t page) {
  const int vectors = call.layout.padded_dim / kVectorColumns;
  for (int i = static_cast<int>(threadIdx.x); i < 2 * vectors; i += kAttentionThreads) {
    append_vector<typename S::Element>(call, item.first_row, item.last_position, page, i / vectors, head,
                                       i % vectors * kVectorColumns);
  }
}

template <typename S>
__global__ void __launch_bounds__(kAttentionThreads, S::kBlocks) attend_item(AttentionCall call) {
  const AttentionItem item = call.items[blockIdx.x];
  const int head = static_cast<int>(blockIdx.y);
  const int first = static_cast<int>(blockIdx.z) * S::kRows;
  if (first >= item.rows) return;
  const Rows<S> rows = find_rows<S>(call, item, first);
  const int end = min(item.end_page, rows.last / kPagePositions + 1);
  const std::int32_t* table = call.rows.pages + item.sequence * call.rows.table_stride;
  const int own_page = S::kRows == 1 && call.appends ? item.last_position / kPagePositions : -1;
  if (own_page >= 0 && own_page + 1 == end) append_own<S>(call, item, head, table[own_page]);
  float queries[S::kRows][S::kColumns];
  load_queries<S>(call, rows, head, queries);
  State<S> state;
  Merged<S> merged_state;
  state.clear();
  merged_state.clear();
  std::int32_t number = item.first_number;
  for (int page = item.first_page; page < end; ++page) {
    const std::int32_t next = page + 1 < end ? table[page + 1] : 0;
    if (page == own_page) __syncthreads();
    attend_page<S>(call, rows, head, page, number, queries, state);
    number = next;
    if (call.restart_pages > 0 && (page + 1) % call.restart_pages == 0 && page + 1 < end) {
      merge_part<S>(rows, state, merged_state);
      state.clear();
      if ((page + 1) % kSegmentPages == 0) {
        merge_segments<S>(merged_state, (page + 1) / kSegmentPages > item.first_page / kSegmentPages + 1);
        store_segments<S>(merged_state);
        merged_state.clear();
      }
    }
  }
  merge_part<S>(rows, state, merged_state);
  if (spans_segments(call, item, end)) merge_segments<S>(merged_state, true);
  write<S>(call, item, rows, head, merged_state);
}

template <typename T, int kLanes, int kVectors>
void launch_rows(cudaStream_t stream, const AttentionCall& call, std::int32_t count, bool tiles) {
  using Single = Shape<T, kLanes, kVectors, 1>;
  using Tile = Shape<T, kLanes, kVectors, kTogether>;
  dim3 blocks(static_cast<unsigned>(count), static_cast<unsigned>(call.layout.n_head));
  if (tiles) {
    blocks.z = kTileRows / kTogether;
    launch(stream, {blocks, dim3(kAttentionThreads), shared_bytes<Tile>(call.merges_segments)}, attend_item<Tile>,
           call);
  } else {
    launch(stream, {blocks, dim3(kAttentionThreads), shared_bytes<Single>(call.merges_segments)}, attend_item<Single>,
           call);
  }
}

template <typename T>
void launch_rows(cudaStream_t stream, const AttentionCall& call, std::int32_t count, bool tiles) {
  const std::int64_t vectors = call.layout.position_bytes() / 16;
  if (vectors <= 8) return launch_rows<T, 8, 1>(stream, call, count, tiles);
  if (vectors <= 16) return launch_rows<T, 16, 1>(stream, call, count, tiles);
  if (vectors <= 32) return launch_rows<T, 32, 1>(stream, call, count, tiles);
  if constexpr (sizeof(T) == 4) launch_rows<T, 32, 2>(stream, call, count, tiles);
}

}  // namespace

void attend_rows(cudaStream_t stream, const AttentionCall& call, DType kv_dtype, std::int32_t count, bool tiles) {
  if (kv_dtype == DType::kFloat32) return launch_rows<float>(stream, call, count, tiles);
  if (kv_dtype == DType::kFloat16) return launch_rows<__half>(stream, call, count, tiles);
  launch_rows<__nv_bfloat16>(stream, call, count, tiles);
}

}  // namespace stagecoach::cuda
