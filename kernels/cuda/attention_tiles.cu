// Attention of many rows of a sequence on tensor cores: FlashAttention-2's division of work (Dao 2023) over pages.
//
//   S (64, 64) = Q (64, head_dim) K_page^T;  P = 2^(scale * S - m);  O (64, head_dim) += P V_page
//
// A block has one item (up to 64 rows of a sequence, a range of its pages) and one head; each of its four warps has 16
// rows. K and V of a page come by asynchronous copies into one of two buffers while the other is worked on. Q, K, V and
// P are 16-bit, sums and the softmax float32. With g = lane / 4 and t = lane % 4, a lane has rows g and g + 8 of its
// warp (`half` 0 and 1), and of them keys or columns 8 n + 2 t and 8 n + 2 t + 1.
#include "kernels/cuda/attention_parts.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/machine.cuh"

namespace stagecoach::cuda {
namespace {

constexpr int kWarpRows = 16;
constexpr int kKeyTiles = kPagePositions / 8;

// Shared memory: K and V of two pages, then (deterministic plans) two states, the second where an item spans segments.
// The 16 bytes behind each position move the next one to other banks.
enum : int { kSegmentSoFar, kSegmentsBefore };
template <int kDim>
struct Shared {
  static constexpr int kStride = kDim * 2 + 16;  // bytes from one position to the next
  static constexpr int kTile = kPagePositions * kStride;
  static constexpr int kStateFloats = kDim / 2 + 4;  // per thread: o, m, l
  static constexpr std::size_t bytes(int states) {
    return std::size_t{4} * kTile + sizeof(float) * kStateFloats * kAttentionThreads * static_cast<std::size_t>(states);
  }
  __device__ static unsigned char* keys(int page) { return shared_memory() + (page % 2) * 2 * kTile; }
  __device__ static unsigned char* values(int page) { return keys(page) + kTile; }
  // Value `i` of this thread's state `which`.
  __device__ static float& state(int which, int i) {
    return reinterpret_cast<float*>(
        shared_memory() + 4 * kTile)[(which * kStateFloats + i) * kAttentionThreads + static_cast<int>(threadIdx.x)];
  }
};

template <int kDim>
struct State {
  float largest[2];
  float sum[2];  // this lane's share; all of it after finish()
  float values[kDim / 8][4];

  __device__ void clear() {
    for (int half = 0; half < 2; ++half) {
      largest[half] = -INFINITY;
      sum[half] = 0.0F;
    }
#pragma unroll
    for (auto& tile : values) {
#pragma unroll
      for (float& value : tile) value = 0.0F;
    }
  }
  __device__ void finish() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sum[half] += __shfl_xor_sync(kAllLanes, sum[half], 1);
      sum[half] += __shfl_xor_sync(kAllLanes, sum[half], 2);
    }
  }
  // Merges the keys before, whose state waits in shared memory, with these.
  __device__ void merge_shared(int which) {
    MergeFactors factors[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float before = Shared<kDim>::state(which, half);
      factors[half] =
          which == kSegmentSoFar ? merge_factors(before, largest[half]) : merge_segment_factors(before, largest[half]);
      largest[half] = factors[half].largest;
      sum[half] = merged(factors[half], Shared<kDim>::state(which, 2 + half), sum[half]);
    }
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        values[n][e] = merged(factors[e / 2], Shared<kDim>::state(which, 4 + n * 4 + e), values[n][e]);
      }
    }
  }
  __device__ void store_shared(int which) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Shared<kDim>::state(which, half) = largest[half];
      Shared<kDim>::state(which, 2 + half) = sum[half];
    }
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) Shared<kDim>::state(which, 4 + n * 4 + e) = values[n][e];
    }
  }
};

// The number of a page of the item's sequence; 0 beyond the item's pages.
__device__ inline std::int32_t page_number(const AttentionCall& call, const AttentionItem& item, int page) {
  return page < item.end_page ? call.rows.pages[item.sequence * call.rows.table_stride + page] : 0;
}

// Starts copying K and V of a page of the item's sequence. Positions beyond the last row become zeros: what a page
// holds there is nobody's. Columns beyond padded_dim are left as clear_padding made them.
template <int kDim>
__device__ void copy_page_async(const AttentionCall& call, const AttentionItem& item, int head, int page,
                                std::int32_t number) {
  constexpr int kLanes = kDim == 96 ? 4 : kDim / 8;  // of a position
  constexpr int kStep = kAttentionThreads / kLanes;
  const int first = static_cast<int>(threadIdx.x) / kLanes;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int position_bytes = call.layout.padded_dim * 2;
  const std::byte* keys = call.pages + call.layout.tile(number, 0, head) + first * position_bytes + lane * 16;
  const std::byte* values = keys + call.layout.n_head * call.layout.tile_bytes();
  unsigned char* shared_keys = Shared<kDim>::keys(page) + first * Shared<kDim>::kStride + lane * 16;
  const int valid = item.last_position - page * kPagePositions - first;
#pragma unroll
  for (int chunk = 0; chunk < kDim / 8; chunk += kLanes) {
    if ((chunk + lane) * 16 >= position_bytes) continue;
#pragma unroll
    for (int position = 0; position < kPagePositions; position += kStep) {
      const int source = position * position_bytes + chunk * 16;
      unsigned char* target = shared_keys + position * Shared<kDim>::kStride + chunk * 16;
      copy_async_16(target, keys + source, position <= valid);
      copy_async_16(target + Shared<kDim>::kTile, values + source, position <= valid);
    }
  }
  copy_async_commit();
}

template <int kDim>
__device__ void clear_padding(const AttentionCall& call) {
  const int used = call.layout.padded_dim / 8;
  for (int position = static_cast<int>(threadIdx.x); position < 4 * kPagePositions; position += kAttentionThreads) {
    unsigned char* row = shared_memory() + position * Shared<kDim>::kStride;
    for (int chunk = used; chunk < kDim / 8; ++chunk) *reinterpret_cast<Vector*>(row + chunk * 16) = Vector{};
  }
}

// Q of the item's rows as fragments, by way of the buffer that the first page does not use.
template <typename Half, int kDim>
__device__ void load_queries(const AttentionCall& call, const AttentionItem& item, int head,
                             std::uint32_t (&queries)[kDim / 16][4]) {
  constexpr int kChunks = kDim / 8;
  unsigned char* buffer = Shared<kDim>::keys(item.first_page + 1);
  for (int index = static_cast<int>(threadIdx.x); index < kTileRows * kChunks; index += kAttentionThreads) {
    const int row = index / kChunks;
    const int column = index % kChunks * 8;
    const std::int64_t source =
        (item.first_row + row) * call.qkv_stride + std::int64_t{head} * call.layout.head_dim + column;
    float q[8];
    load_activations(call.qkv, call.dtype, call.qkv_vectors, source,
                     row < item.rows ? call.layout.head_dim - column : 0, q);
    Vector vector;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      vector.words[i] = pack<Half>(call.query_sign * q[2 * i], call.query_sign * q[2 * i + 1]);
    }
    *reinterpret_cast<Vector*>(buffer + row * Shared<kDim>::kStride + column * 2) = vector;
  }
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int first = static_cast<int>(threadIdx.x) / kWarp * kWarpRows;
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) {
    load_matrices(queries[k], buffer + (first + lane % 16) * Shared<kDim>::kStride + (2 * k + lane / 16) * 16);
  }
}

// S of the warp's rows and a page.
template <typename Half, int kDim>
__device__ void multiply_keys(const std::uint32_t (&queries)[kDim / 16][4], int page, float (&scores)[kKeyTiles][4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const unsigned char* keys =
      Shared<kDim>::keys(page) + (lane % 8 + lane / 16 * 8) * Shared<kDim>::kStride + lane / 8 % 2 * 16;
#pragma unroll
  for (auto& tile : scores) {
#pragma unroll
    for (float& score : tile) score = 0.0F;
  }
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) {
#pragma unroll
    for (int n = 0; n < kKeyTiles; n += 2) {
      std::uint32_t loaded[4];
      load_matrices(loaded, keys + n * 8 * Shared<kDim>::kStride + k * 32);
      multiply_add<Half>(scores[n], queries[k], {loaded[0], loaded[1]});
      multiply_add<Half>(scores[n + 1], queries[k], {loaded[2], loaded[3]});
    }
  }
}

// Scores become probabilities relative to the new largest score, and the state is scaled to it.
template <int kDim>
__device__ void soften(State<kDim>& state, float (&scores)[kKeyTiles][4], float scale) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float largest = -INFINITY;
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n) {
      largest = fmaxf(largest, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
    }
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
    // Scaled before they are compared: keep must be exactly 1 where the largest stays.
    largest = fmaxf(state.largest[half], rounded_product(largest, scale));
    const float reference = reference_score(largest);
    const float keep = exp2f(state.largest[half] - reference);
    float sum = 0.0F;
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
      for (int e = 2 * half; e < 2 * half + 2; ++e) {
        scores[n][e] = exp2f(fmaf(scores[n][e], scale, -reference));
        sum += scores[n][e];
      }
    }
    state.largest[half] = largest;
    state.sum[half] = fmaf(state.sum[half], keep, sum);
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      state.values[n][2 * half] = rounded_product(state.values[n][2 * half], keep);
      state.values[n][2 * half + 1] = rounded_product(state.values[n][2 * half + 1], keep);
    }
  }
}

template <typename Half, int kDim>
__device__ void multiply_values(State<kDim>& state, const float (&scores)[kKeyTiles][4], int page) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const unsigned char* values = Shared<kDim>::values(page) + lane % 16 * Shared<kDim>::kStride + lane / 16 * 16;
#pragma unroll
  for (int k = 0; k < kPagePositions / 16; ++k) {
    const std::uint32_t probabilities[4] = {
        pack<Half>(scores[2 * k][0], scores[2 * k][1]), pack<Half>(scores[2 * k][2], scores[2 * k][3]),
        pack<Half>(scores[2 * k + 1][0], scores[2 * k + 1][1]), pack<Half>(scores[2 * k + 1][2], scores[2 * k + 1][3])};
#pragma unroll
    for (int n = 0; n < kDim / 8; n += 2) {
      std::uint32_t loaded[4];
      load_matrices_transposed(loaded, values + k * 16 * Shared<kDim>::kStride + n * 16);
      multiply_add<Half>(state.values[n], probabilities, {loaded[0], loaded[1]});
      multiply_add<Half>(state.values[n + 1], probabilities, {loaded[2], loaded[3]});
    }
  }
}

template <int kDim>
__device__ void write(const AttentionCall& call, const AttentionItem& item, int head, const State<kDim>& state) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = static_cast<int>(threadIdx.x) / kWarp * kWarpRows + lane / 4 + 8 * half;
    if (row >= item.rows) continue;
    if (item.partial >= 0) {
      float* values = call.partial_values(std::int64_t{item.partial} + row, head);
      float* summary = call.partial_summary(std::int64_t{item.partial} + row, head);
      if (lane % 4 == 0) {
        summary[0] = state.largest[half];
        summary[1] = state.sum[half];
      }
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        const int column = n * 8 + lane % 4 * 2;
        if (column >= call.layout.padded_dim) continue;
        *reinterpret_cast<float2*>(values + column) =
            make_float2(state.values[n][2 * half], state.values[n][2 * half + 1]);
      }
      continue;
    }
    const float inverse = result_factor(call, state.sum[half]);
    const std::int64_t begin = call.result_begin(item, row);
    const std::int64_t target = begin + std::int64_t{head} * call.layout.head_dim;
    if (call.in_parts && lane % 4 == 0) {
      store_part_summary(call, begin, head, natural_score(state.largest[half]), state.sum[half]);
    }
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      const int column = n * 8 + lane % 4 * 2;
      const float low = normalized(state.values[n][2 * half], inverse);
      const float high = normalized(state.values[n][2 * half + 1], inverse);
      if (call.out_pairs && column < call.layout.head_dim) {  // head_dim is even
        store_activations(call.out, call.out_dtype, target + column, low, high);
        continue;
      }
      if (column < call.layout.head_dim) store_activation(call.out, call.out_dtype, target + column, low);
      if (column + 1 < call.layout.head_dim) store_activation(call.out, call.out_dtype, target + column + 1, high);
    }
  }
}

// Positions of a warp's rows; -1 where there is no row.
struct WarpRows {
  std::int32_t position[2];  // of this lane's rows
  std::int32_t lowest, highest;
};
__device__ inline WarpRows warp_rows(const AttentionCall& call, const AttentionItem& item) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int first = static_cast<int>(threadIdx.x) / kWarp * kWarpRows;
  const auto position = [&](int row) { return row < item.rows ? call.rows.positions[item.first_row + row] : -1; };
  const int last = min(first + kWarpRows, item.rows) - 1;
  return {{position(first + lane / 4), position(first + lane / 4 + 8)},
          first + kWarpRows <= item.rows ? position(first) : -1,
          last >= first ? position(last) : -1};
}

__device__ inline void mask(const WarpRows& rows, int page, float (&scores)[kKeyTiles][4]) {
  const int key = page * kPagePositions + static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (key + n * 8 + e % 2 > rows.position[e / 2]) scores[n][e] = -INFINITY;
    }
  }
}

// Ends the part that begins at page `begin`; `last` of its segment, or of the item.
template <int kDim>
__device__ void end_part(State<kDim>& state, const AttentionCall& call, const AttentionItem& item, int begin,
                         bool last) {
  state.finish();
  if (begin > item.first_page && begin % kSegmentPages != 0) state.merge_shared(kSegmentSoFar);
  if (!last || !spans_segments(call, item, item.end_page)) return;
#pragma unroll
  for (float& largest : state.largest) largest = natural_score(largest);
  if (begin / kSegmentPages > item.first_page / kSegmentPages) state.merge_shared(kSegmentsBefore);
}

template <typename Half, int kDim>
__global__ void __launch_bounds__(kAttentionThreads, kDim <= 64 ? 3 : 2) attend_tile(AttentionCall call) {
  const AttentionItem item = call.items[blockIdx.x];
  const int head = static_cast<int>(blockIdx.y);
  if (item.rows == 0) return;
  copy_page_async<kDim>(call, item, head, item.first_page, item.first_number);
  std::int32_t next_number = page_number(call, item, item.first_page + 1);
  if (call.layout.padded_dim < kDim) clear_padding<kDim>(call);
  std::uint32_t queries[kDim / 16][4];
  load_queries<Half, kDim>(call, item, head, queries);
  const WarpRows rows = warp_rows(call, item);
  State<kDim> state;
  state.clear();
  // Parts begin at multiples of restart_pages, as the item does.
  const int part_pages = call.restart_pages > 0 ? call.restart_pages : item.end_page - item.first_page;
  int part_end = item.first_page + part_pages;
  for (int page = item.first_page; page < item.end_page; ++page) {
    copy_async_wait<0>();
    __syncthreads();  // the page has come, and nobody still reads the other buffer
    if (page + 1 < item.end_page) copy_page_async<kDim>(call, item, head, page + 1, next_number);
    next_number = page_number(call, item, page + 2);  // read a page ahead, so that no copy waits for it
    if (page * kPagePositions <= rows.highest) {
      float scores[kKeyTiles][4];
      multiply_keys<Half, kDim>(queries, page, scores);
      if ((page + 1) * kPagePositions - 1 > rows.lowest) mask(rows, page, scores);
      soften(state, scores, call.scale);
      multiply_values<Half, kDim>(state, scores, page);
    }
    if (page + 1 == part_end && part_end < item.end_page) {
      const bool last = part_end % kSegmentPages == 0;
      end_part(state, call, item, part_end - part_pages, last);
      state.store_shared(last ? kSegmentsBefore : kSegmentSoFar);
      state.clear();
      part_end += part_pages;
    }
  }
  end_part(state, call, item, part_end - part_pages, true);
  write(call, item, head, state);
}

template <typename Half, int kDim>
void launch_tiles(cudaStream_t stream, const AttentionCall& call, std::int32_t count) {
  constexpr std::size_t kFreeShared = 48 * 1024;
  const std::size_t bytes = Shared<kDim>::bytes((call.restart_pages > 0 ? 1 : 0) + (call.merges_segments ? 1 : 0));
  if (bytes > kFreeShared) allow_shared_bytes(attend_tile<Half, kDim>, bytes);
  const dim3 blocks(static_cast<unsigned>(count), static_cast<unsigned>(call.layout.n_head));
  launch(stream, {blocks, dim3(kAttentionThreads), bytes}, attend_tile<Half, kDim>, call);
}

template <typename Half>
void launch_tiles(cudaStream_t stream, const AttentionCall& call, std::int32_t count) {
  if (call.layout.head_dim <= 32) return launch_tiles<Half, 32>(stream, call, count);
  if (call.layout.head_dim <= 64) return launch_tiles<Half, 64>(stream, call, count);
  if (call.layout.head_dim <= 96) return launch_tiles<Half, 96>(stream, call, count);
  return launch_tiles<Half, 128>(stream, call, count);
}

}  // namespace

bool tiles_possible(const KvLayout& layout, DType kv_dtype) {
  return kv_dtype != DType::kFloat32 && layout.head_dim <= 128;
}

void attend_tiles(cudaStream_t stream, const AttentionCall& call, DType kv_dtype, std::int32_t count) {
  if (kv_dtype == DType::kFloat16) return launch_tiles<__half>(stream, call, count);
  launch_tiles<__nv_bfloat16>(stream, call, count);
}

}  // namespace stagecoach::cuda
