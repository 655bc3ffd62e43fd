// The CPU backend: shapes in, tasks out. Operations are cut into tasks by outputs, which any thread may take;
// each row's arithmetic stands in the kernels and does not depend on the cut.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "kernels/backend.hpp"
#include "kernels/checks.hpp"
#include "kernels/convert.hpp"
#include "kernels/cpu/kernels.hpp"
#include "kernels/cpu/pack.hpp"
#include "kernels/cpu/scratch.hpp"
#include "kernels/cpu/thread_pool.hpp"
#include "kernels/host_memory.hpp"
#include "kernels/row_set.hpp"

namespace stagecoach {
namespace {

using namespace cpu;

// Rows below this many elements are not worth waking a thread.
constexpr std::int64_t kInlineElements = 16 * 1024;
// Fewer tasks of a product would leave threads without work at its end.
constexpr std::int64_t kTasksPerThread = 16;
// With no more rows than this tasks begin with many panels and end with single ones: neighbours stream from memory
// without a break, and threads end together all the same.
constexpr std::int64_t kFewRows = 36;
constexpr std::int64_t kFewRowsPanels = kTaskPanels * kLargeRowBlock / kFewRows;

// A group's rows, or one segment of what they see.
struct AttentionPiece {
  RowGroup group;
  std::int64_t ordinal;  // of the segment among those that are here
};
struct AttentionTask {
  std::int64_t piece;
  AttentionHeads heads;
};

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const CpuOptions& options)
      : memory_(options.budget_bytes.value_or(HostMemory::kUnlimited)),
        layout_(cpu_layout(options.threads)),
        simd_(resolve_simd(options.simd)),
        kernels_(kernels_for(simd_)),
        pool_(options.threads) {
    scratch_.resize(static_cast<std::size_t>(pool_.threads()));
    for (ThreadScratch& s : scratch_) {
      s.linear = memory_.allocate(kLinearScratchBytes);
      s.attention = memory_.allocate(attention_scratch_bytes(kUsualHeadDim));
    }
  }

  std::string name() const override {
    return fmt::format("cpu ({}, {} thread{})", simd_name(simd_), pool_.threads(), pool_.threads() == 1 ? "" : "s");
  }

  Buffer allocate(std::int64_t bytes) override { return memory_.allocate(bytes); }
  void upload(void* device, const void* host, std::int64_t bytes) override {
    if (bytes > 0) std::memcpy(device, host, static_cast<std::size_t>(bytes));
  }
  void download(void* host, const void* device, std::int64_t bytes) override {
    if (bytes > 0) std::memcpy(host, device, static_cast<std::size_t>(bytes));
  }
  std::int64_t bytes_allocated() const override { return memory_.bytes_allocated(); }
  std::int64_t peak_bytes() const override { return memory_.peak_bytes(); }
  std::optional<std::int64_t> memory_limit() const override {
    if (memory_.budget() == HostMemory::kUnlimited) return std::nullopt;
    return memory_.budget();
  }

  const MemoryLayout& layout() const override { return *layout_; }
  void reserve(const OperationLimits& limits) override {
    const ProductScratch products = product_scratch(limits.rows, limits.columns, limits.weights);
    at_least<float>(packed_, products.packed);
    at_least<float>(quantized_, products.quantized);
    grow_attention_scratch(limits.head_dim);
  }

  void load_rows(Matrix& matrix, WeightLayout layout, std::int64_t first_row, Tensor host) override {
    check_load_rows(matrix, layout, first_row, host);
    cpu::pack_rows(pool_, kernels_, packed(matrix), layout, first_row, host);
  }

  void load_panels(Matrix& matrix, DType stored, const PanelReader& read) override {
    check_load_panels(matrix, stored);
    cpu::load_panels(pool_, kernels_, memory_, packed(matrix), stored, read);
  }

  void set_rows(const RowsView& rows) override {
    rows_.assign(rows);
    groups_ = rows_.groups(kGroupRows);
  }

  void embed(const Matrix& wte, Tensor wpe, Tensor out) override {
    check_embed(rows_, wte, wpe, out);
    for_rows(out.rows, out.cols * 16, [&](std::int64_t r, int) {  // each element is a cache line of its own
      const std::int32_t token = rows_.tokens()[static_cast<std::size_t>(r)];
      const std::byte* position = wpe.row(rows_.positions()[static_cast<std::size_t>(r)]);
      kernels_.widen(position, wpe.dtype, out.f32(r), out.cols);
      for (std::int64_t c = 0; c < out.cols; ++c) {
        out.f32(r)[c] = packed_element(packed(wte), c, token) + out.f32(r)[c];
      }
    });
  }

  void attention(Tensor qkv, const KvPages& kv, float scale, Tensor out) override {
    check_attention(rows_, qkv, kv, out);
    check_float32(qkv, out, "attention");
    AttentionArgs args = attention_args(qkv, kv);
    args.scale = scale;
    args.out = out.f32(0);
    args.out_stride = out.stride;
    append_rows(args, qkv);
    // Later groups see more keys, so they go first: what is left at the end is short.
    pieces_.clear();
    for (auto group = groups_.rbegin(); group != groups_.rend(); ++group) pieces_.push_back({*group, 0});
    run_attention(kv.n_head, [&](const AttentionPiece& piece, AttentionHeads heads, float* scratch) {
      kernels_.attend(args, group_rows(piece.group), heads, scratch);
    });
  }

  void append(Tensor qkv, const KvPages& kv) override {
    check_append(rows_, qkv, kv);
    check_float32(qkv, qkv, "append");
    append_rows(attention_args(qkv, kv), qkv);
  }

  void attention_parts(Tensor qkv, const KvPages& kv, float scale, std::int64_t first_row, std::int64_t rows,
                       Tensor parts) override {
    check_attention_parts(rows_, qkv, kv, first_row, rows, parts);
    check_float32(qkv, parts, "attention_parts");
    AttentionArgs args = attention_args(qkv, kv);
    args.scale = scale;
    first_part_.clear();
    std::int64_t next = 0;
    for (std::int64_t r = first_row; r < first_row + rows; ++r) {
      first_part_.push_back(next);
      next += rows_.parts(r);
    }
    pieces_.clear();
    for (const RowGroup& group : rows_.groups(kGroupRows, first_row, rows)) {
      const std::int64_t seen = rows_.parts(group.first_row + group.rows - 1);
      for (std::int64_t i = 0; i < seen; ++i) pieces_.push_back({group, i});
    }
    run_attention(kv.n_head, [&](const AttentionPiece& piece, AttentionHeads heads, float* scratch) {
      const auto& [group, ordinal] = piece;
      const SegmentParts to{parts.f32(0), parts.stride, first_part_.data() + (group.first_row - first_row),
                            rows_.segments(group.sequence)[static_cast<std::size_t>(ordinal)], ordinal};
      kernels_.attend_part(args, group_rows(group), heads, to, scratch);
    });
  }

  void merge_parts(Tensor parts, std::int32_t n_head, std::span<const std::int32_t> first,
                   std::span<const std::int32_t> numbers, Tensor out) override {
    check_merge_parts(parts, n_head, first, numbers, out);
    check_float32(parts, out, "merge_parts");
    const PageLayout layout{n_head, out.cols / n_head};
    grow_attention_scratch(layout.head_dim);
    part_rows_.clear();
    for (const std::int32_t number : numbers) part_rows_.push_back(parts.f32(number));
    for_rows(out.rows, out.cols, [&](std::int64_t r, int thread) {
      const auto begin = static_cast<std::size_t>(first[static_cast<std::size_t>(r)]);
      const auto end = static_cast<std::size_t>(first[static_cast<std::size_t>(r) + 1]);
      kernels_.merge_parts(layout, std::span(part_rows_).subspan(begin, end - begin), out.f32(r),
                           attention_scratch(thread));
    });
  }

  void copy_page(const KvPages& kv, std::int32_t from, std::int32_t to) override {
    check_copy_page(kv, from, to);
    const std::int64_t bytes = kv_page_bytes(kv.n_head, kv.head_dim, kv.dtype);
    auto* base = static_cast<std::byte*>(kv.base);
    std::memcpy(base + to * bytes, base + from * bytes, static_cast<std::size_t>(bytes));
  }

  void layer_norm(Tensor x, Tensor gain, Tensor bias, float epsilon, Tensor out) override {
    check_layer_norm(x, gain, bias, out);
    check_float32(x, out, "layer_norm");
    const NormArgs args{gain.f32(0), bias.f32(0), epsilon, x.cols};
    for_rows(x.rows, x.cols, [&](std::int64_t r, int) { kernels_.layer_norm(args, x.f32(r), out.f32(r)); });
  }

  void linear(Tensor x, const Matrix& w, Tensor bias, Epilogue epilogue, Tensor out) override {
    check_linear(x, w, bias, epilogue, out);
    check_float32(x, out, "linear");
    if (x.rows == 0) return;
    const std::int64_t height = cut(x.rows, w);
    LinearArgs args{
        nullptr,  {},         w.storage.data(), w.dtype,     w.in, w.out, bias.data == nullptr ? nullptr : bias.f32(0),
        epilogue, out.f32(0), out.stride,       fetch_ahead_};
    if (w.dtype == DType::kInt8) {
      args.quantized = quantize(x, height);
    } else {
      args.x = pack(x.f32(0), x.stride, x.rows, x.cols, height);
    }
    pool_.run(static_cast<std::int64_t>(linear_tasks_.size()), [&](std::int64_t task, int thread) {
      kernels_.linear(args, linear_tasks_[static_cast<std::size_t>(task)], linear_scratch(thread));
    });
  }

  void gather(Tensor x, std::span<const std::int32_t> rows, Tensor out) override {
    check_gather(x, rows, out);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      std::memcpy(out.f32(static_cast<std::int64_t>(i)), x.f32(rows[i]),
                  static_cast<std::size_t>(x.cols) * sizeof(float));
    }
  }

  void summarize_logits(Tensor logits, std::span<const LogitsQuery> queries, void* out) override {
    check_summarize_logits(logits, queries, out);
    summarize_on_host(logits, queries, out);
  }

  void synchronize() override {}

 private:
  struct ThreadScratch {
    Buffer linear;     // Scratch::partial and Scratch::wide
    Buffer attention;  // attention_scratch_floats
  };

  // Cuts a product into linear_tasks_; gives the rows of a block. The blocks of some panels follow one another, so that
  // their weights come from memory once.
  std::int64_t cut(std::int64_t rows, const Matrix& w) {
    const std::int64_t panels = MatrixLayout{w.in, w.out}.panels();
    const std::int64_t fewest = ceil_div(rows, w.dtype == DType::kInt8 ? kRowBlock : row_block_);
    const std::int64_t height = fewest == 1 ? rows : round_up(ceil_div(rows, fewest), kRowUnit);
    const std::int64_t blocks = ceil_div(rows, height);
    const bool few = rows <= kFewRows;
    linear_tasks_.clear();
    for (std::int64_t panel = 0; panel < panels;) {
      const std::int64_t left = panels - panel;
      const std::int64_t share =
          few ? left / (2 * pool_.threads()) : panels * blocks / (kTasksPerThread * pool_.threads());
      const std::int64_t count = std::clamp<std::int64_t>(share, 1, std::min(few ? kFewRowsPanels : kTaskPanels, left));
      for (std::int64_t first = 0; first < rows; first += height) {
        linear_tasks_.push_back({panel, count, first, std::min(height, rows - first)});
      }
      panel += count;
    }
    return height;
  }

  // But for scale and output.
  AttentionArgs attention_args(Tensor qkv, const KvPages& kv) {
    grow_attention_scratch(kv.head_dim);
    AttentionArgs args{};
    args.qkv = qkv.f32(0);
    args.qkv_stride = qkv.stride;
    args.pages = static_cast<std::byte*>(kv.base);
    args.page_bytes = kv_page_bytes(kv.n_head, kv.head_dim, kv.dtype);
    args.dtype = kv.dtype;
    args.layout = {kv.n_head, kv.head_dim};
    args.fetch_ahead = fetch_ahead_;
    return args;
  }
  // A task for every piece and head, or, of a single row, for as many heads side by side as leave work for all threads.
  template <class Body>
  void run_attention(std::int64_t n_head, const Body& body) {
    const auto pieces = static_cast<std::int64_t>(pieces_.size());
    if (pieces == 0) return;
    const std::int64_t cuts = std::max(ceil_div(n_head, kGroupHeads), ceil_div(pool_.threads(), pieces));
    const std::int64_t side_by_side = ceil_div(n_head, cuts);
    tasks_.clear();
    for (std::int64_t i = 0; i < pieces; ++i) {
      const std::int64_t count = pieces_[static_cast<std::size_t>(i)].group.rows == 1 ? side_by_side : 1;
      for (std::int64_t h = 0; h < n_head; h += count) tasks_.push_back({i, {h, std::min(count, n_head - h)}});
    }
    pool_.run(static_cast<std::int64_t>(tasks_.size()), [&](std::int64_t i, int thread) {
      const AttentionTask& task = tasks_[static_cast<std::size_t>(i)];
      body(pieces_[static_cast<std::size_t>(task.piece)], task.heads, attention_scratch(thread));
    });
  }

  AttentionGroup group_rows(const RowGroup& group) const {
    return {group.first_row, group.rows, rows_.positions().data() + group.first_row, rows_.table(group.sequence)};
  }
  void append_rows(const AttentionArgs& args, Tensor qkv) {
    if (qkv.rows == 0) return;
    // Some heads of all rows are a task: rows of one sequence write to the same cache lines. Of one row each element of
    // K is on a cache line of its own.
    const auto [n_head, head_dim] = args.layout;
    const std::int64_t each =
        std::max(ceil_div(n_head, 4 * pool_.threads()), kInlineElements / (qkv.rows * head_dim * 16));
    pool_.run(ceil_div(n_head, each), [&](std::int64_t task, int thread) {
      const AttentionHeads heads{task * each, std::min(each, n_head - task * each)};
      for (std::int64_t r = 0; r < qkv.rows; ++r) {
        const std::int32_t position = rows_.positions()[static_cast<std::size_t>(r)];
        const std::int32_t page = rows_.page_of(r, position);
        if (page == kElsewhere) continue;
        kernels_.append(args, r, heads, args.pages + page * args.page_bytes, position % kPagePositions,
                        attention_scratch(thread));
      }
    });
  }

  Scratch linear_scratch(int thread) const {
    auto* floats = static_cast<float*>(scratch_[static_cast<std::size_t>(thread)].linear.data());
    return {floats, floats + kTaskPanels * kLargeRowBlock * kPanel};
  }
  float* attention_scratch(int thread) const {
    return static_cast<float*>(scratch_[static_cast<std::size_t>(thread)].attention.data());
  }
  void grow_attention_scratch(std::int64_t head_dim) {
    const std::int64_t bytes = attention_scratch_bytes(head_dim);
    for (ThreadScratch& s : scratch_) {
      if (static_cast<std::int64_t>(s.attention.bytes()) >= bytes) continue;
      s.attention = Buffer();
      s.attention = memory_.allocate(bytes);
    }
  }

  // `count` 32-bit elements in a buffer that grows to the largest product seen.
  template <class T>
  T* at_least(Buffer& buffer, std::int64_t count) {
    static_assert(sizeof(T) == 4);
    if (static_cast<std::int64_t>(buffer.bytes()) < count * 4) {
      buffer = Buffer();
      buffer = memory_.allocate(count * 4);
    }
    return static_cast<T*>(buffer.data());
  }

  // `rows` rows of `in` elements as the tasks of linear() read them, valid until the next product.
  template <class T>
  const T* pack(const T* x, std::int64_t stride, std::int64_t rows, std::int64_t in, std::int64_t height) {
    if (rows == 1) return x;
    T* packed = at_least<T>(packed_, rows * in);
    for_rows((rows + height - 1) / height, height * in, [&](std::int64_t block, int) {
      const std::int64_t first = block * height;
      kernels_.pack(x + first * stride, stride, std::min(height, rows - first), in, packed + first * in);
    });
    return packed;
  }
  QuantizedRows quantize(Tensor x, std::int64_t height) {
    const std::int64_t pairs = pairs_of(x.cols);
    const std::int64_t groups = int8_groups(x.cols);
    auto* values = at_least<std::int32_t>(quantized_, x.rows * (pairs + groups));
    auto* scales = reinterpret_cast<float*>(values + x.rows * pairs);
    for_rows(x.rows, x.cols, [&](std::int64_t r, int) {
      kernels_.quantize_row(x.f32(r), x.cols, reinterpret_cast<std::int16_t*>(values + r * pairs), scales + r * groups);
    });
    return {pack<std::int32_t>(values, pairs, x.rows, pairs, height), pairs, scales, groups};
  }

  // body(row, thread) for all rows, on all threads when there is enough to do.
  template <class Body>
  void for_rows(std::int64_t rows, std::int64_t elements_per_row, const Body& body) {
    const std::int64_t per_task = std::max<std::int64_t>(1, kInlineElements / elements_per_row);
    pool_.run((rows + per_task - 1) / per_task, [&](std::int64_t task, int thread) {
      const std::int64_t end = std::min(rows, (task + 1) * per_task);
      for (std::int64_t r = task * per_task; r < end; ++r) body(r, thread);
    });
  }

  HostMemory memory_;  // first: outlives the scratch below
  std::unique_ptr<MemoryLayout> layout_;
  Simd simd_;
  Kernels kernels_;
  // What L2 has is nothing that a result depends on. Unknown is 0 or -1.
  std::int64_t row_block_ = sysconf(_SC_LEVEL2_CACHE_SIZE) < kLargeL2 ? kRowBlock : kLargeRowBlock;
  std::int64_t fetch_ahead_ = best_fetch_ahead();
  std::vector<ThreadScratch> scratch_;
  Buffer packed_;     // rows of the current product
  Buffer quantized_;  // the same rounded to 16 bits, and scales
  RowSet rows_;
  std::vector<RowGroup> groups_;
  std::vector<AttentionPiece> pieces_;
  std::vector<LinearTask> linear_tasks_;
  std::vector<AttentionTask> tasks_;
  std::vector<std::int64_t> first_part_;  // by row of attention_parts
  std::vector<const float*> part_rows_;   // of merge_parts
  ThreadPool pool_;                       // last: its threads stop before what they use goes
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(const CpuOptions& options) {
  return std::make_unique<CpuBackend>(options);
}

}  // namespace stagecoach
