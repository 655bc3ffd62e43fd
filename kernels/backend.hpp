// The one device seam: memory and the operations that carry a GPT-2 stage.
//
// A backend is one in-order queue on one device: operations start in call order and each sees the results of those
// before it; `synchronize` waits until all of them are done. It knows rows, pages and matrices; it does not know
// models, blocks or ranks. Weights, KV pages and activations have their own dtypes and are widened when read; sums are
// float32. The residual stream and logits are float32, what stands between the operations of a block is of the
// backend's activation_dtype. Preconditions (shapes, dtypes) are checked at this border and throw std::invalid_argument
// with the values.
//
// Layout invariance (reference and cpu): each output row is computed in an order of operations that does not depend on
// how many rows share the call, on other rows, or on the number of threads.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>

#include "kernels/int8.hpp"
#include "kernels/logits.hpp"
#include "kernels/memory_layout.hpp"
#include "kernels/tensor.hpp"
#include "kernels/weight_layout.hpp"

namespace stagecoach {

// A device failed: out of memory, a launch error, a lost device.
class DeviceError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Hugging Face names: gelu_new and gelu_pytorch_tanh are kGeluTanh, gelu is kGeluErf.
enum class Activation : std::uint8_t { kNone, kGeluTanh, kGeluErf, kRelu, kSilu };

// What `linear` does with x * w + bias: y = act(.), or y += . (the residual stream). Never both.
struct Epilogue {
  Activation activation = Activation::kNone;
  bool add_to_output = false;
};

// A weight matrix (in, out) in the backend's own packing. int8 weights have a float32 scale per output column and group
// of kInt8Group inputs (int8.hpp); for them `linear` may round each row of x to 16 bits relative to the largest
// magnitude in each such group.
struct Matrix {
  std::int64_t in = 0;
  std::int64_t out = 0;
  DType dtype = DType::kFloat32;
  Buffer storage;
};

// Token positions of one page of the KV cache, and the tile of attention: keys are reduced tile by tile from position
// 0.
inline constexpr std::int32_t kPagePositions = 64;
// Tiles of a segment. Attention reduces the tiles of a segment in order, then the segments in order, so that segments
// may be reduced anywhere.
inline constexpr std::int32_t kSegmentPages = 16;
inline constexpr std::int32_t kSegmentPositions = kSegmentPages * kPagePositions;
// A page number of keys that another rank has; whole segments are here or elsewhere.
inline constexpr std::int32_t kElsewhere = -1;

// What attention knows of one segment, for one row, is a part: for each head sum(exp(s - m) v), head_dim values, and
// after those of all heads for each head m, the largest score s = scale * q k, and l = sum(exp(s - m)); float32.
constexpr std::int64_t part_width(std::int64_t n_head, std::int64_t head_dim) {
  return n_head * (head_dim + 2);
}

// The KV pages of one block. A page holds, in the backend's own layout, K and V of kPagePositions positions for all
// heads; page p begins p * page_bytes after `base`. Sizes: Backend::kv_page_bytes.
struct KvPages {
  void* base = nullptr;
  DType dtype = DType::kFloat32;
  std::int64_t page_count = 0;
  std::int32_t n_head = 0;
  std::int32_t head_dim = 0;
};

// The rows that the next operations work on. All spans are host memory; the backend copies what it needs.
// Rows of one sequence that share the call stand in order of their positions.
struct RowsView {
  std::span<const std::int32_t> tokens;     // (rows) vocabulary ids
  std::span<const std::int32_t> positions;  // (rows) zero-based position in the sequence
  std::span<const std::int32_t> sequences;  // (rows) index of the row's page table below
  std::span<const std::int32_t>
      pages;  // (sequences, table_stride) page numbers; page i holds positions from i * kPagePositions
              // attention needs all pages up to a row's position; append and attention_parts take kElsewhere as well
  std::int64_t table_stride = 0;
};

// Puts panels [first, first + count) of a packed matrix where `panels` points. Panels are asked for once each.
using PanelReader = std::function<void(std::int64_t first, std::int64_t count, std::byte* panels)>;

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string name() const = 0;

  // --- memory; throws DeviceError when there is none left
  virtual Buffer allocate(std::int64_t bytes) = 0;  // zeroed, aligned to 64 bytes or more
  virtual void upload(void* device, const void* host, std::int64_t bytes) = 0;
  virtual void download(void* host, const void* device, std::int64_t bytes) = 0;  // synchronises
  virtual std::int64_t bytes_allocated() const = 0;
  virtual std::int64_t peak_bytes() const = 0;
  // Bytes that `allocate` can give out in all: a device's own memory, or a budget of the host's; nothing without
  // either.
  virtual std::optional<std::int64_t> memory_limit() const { return std::nullopt; }

  // --- for transports of a device with memory of its own; on the host they are plain copies
  // Whether the host reads and writes buffers directly, once `idle`.
  bool in_host_memory() const { return layout().in_host_memory(); }
  // Host memory that such a device copies to and from at full speed.
  virtual Buffer allocate_host(std::int64_t bytes) { return allocate(bytes); }
  // Start copies that may run beside operations: a download of what the operations queued so far leave in `device`; an
  // upload that operations queued from now on see, into memory that no queued operation uses. `host` is from
  // allocate_host; both ends belong to the copy until `finished` says true, once.
  using Copy = std::uint64_t;
  virtual Copy start_download(void* host, const void* device, std::int64_t bytes) {
    download(host, device, bytes);
    return 0;
  }
  virtual Copy start_upload(void* device, const void* host, std::int64_t bytes) {
    upload(device, host, bytes);
    return 0;
  }
  virtual bool finished(Copy) { return true; }

  // --- layout
  // Lives as long as the backend. It says no to shapes and dtypes that the backend does not take.
  virtual const MemoryLayout& layout() const = 0;
  DType activation_dtype(DType weights) const { return layout().activation_dtype(weights); }
  std::int64_t matrix_bytes(std::int64_t in, std::int64_t out, DType dtype) const {
    return layout().matrix_bytes(in, out, dtype);
  }
  std::int64_t kv_page_bytes(std::int32_t n_head, std::int32_t head_dim, DType dtype) const {
    return layout().kv_page_bytes(n_head, head_dim, dtype);
  }
  // Allocates what operations within these limits need for themselves, so that they allocate nothing any more:
  // layout().own_bytes(limits) with what the backend had from the start. Operations beyond them allocate what they
  // need.
  virtual void reserve(const OperationLimits& limits) = 0;

  // --- weights
  Matrix make_matrix(std::int64_t in, std::int64_t out, DType dtype) {
    return {in, out, dtype, allocate(matrix_bytes(in, out, dtype))};
  }
  // Packs rows [first_row, first_row + host.rows) of the host array into `matrix`, converting host.dtype to
  // matrix.dtype (round to nearest even). kInOut: host is (in, out); kOutIn: host is (out, in). Host memory may be
  // reused on return. For int8 and kInOut the rows are whole groups: they begin at a multiple of kInt8Group and end at
  // one or with the matrix.
  virtual void load_rows(Matrix& matrix, WeightLayout layout, std::int64_t first_row, Tensor host) = 0;
  // Fills `matrix` from the same matrix packed (weight_layout.hpp) in `stored`, converted as load_rows does; int8 goes
  // into int8 only. Calls `read` on the calling thread and perhaps on others at once, each for panels of its own, until
  // it has all of them. When `read` throws, no further calls begin, and what came first is thrown at the end.
  virtual void load_panels(Matrix& matrix, DType stored, const PanelReader& read) = 0;

  // --- operations on the rows of the last set_rows
  virtual void set_rows(const RowsView& rows) = 0;
  // out(r, :) = wte(:, tokens[r]) + wpe(positions[r], :).   wte is a Matrix (n_embd, vocab); wpe (n_positions, n_embd).
  virtual void embed(const Matrix& wte, Tensor wpe, Tensor out) = 0;
  // Appends K and V of every row to its pages, then out(r, head) = softmax(scale * q k^T) v over positions
  // 0..positions[r]. qkv is (rows, 3 * n_head * head_dim): q, k, v side by side; out is (rows, n_head * head_dim), of
  // the same dtype.
  virtual void attention(Tensor qkv, const KvPages& kv, float scale, Tensor out) = 0;

  // --- attention in parts, where page numbers of set_rows may be kElsewhere; together they give the bits of attention
  // (on a device whose results vary with the number of rows: no more than about the same values)
  // Appends K and V of those rows whose page is here.
  virtual void append(Tensor qkv, const KvPages& kv) = 0;
  // For each of `rows` rows from `first_row` on, in order, the parts of all segments that are here and begin at or
  // before the row's position, in order: parts is (their number, part_width(n_head, head_dim)). qkv is that of all
  // rows.
  virtual void attention_parts(Tensor qkv, const KvPages& kv, float scale, std::int64_t first_row, std::int64_t rows,
                               Tensor parts) = 0;
  // Row r of `out` (rows, n_head * head_dim), of an activation dtype, from the parts numbers[first[r]] to
  // numbers[first[r + 1] - 1], which are those of all its segments, in order. Spans are host memory, copied.
  virtual void merge_parts(Tensor parts, std::int32_t n_head, std::span<const std::int32_t> first,
                           std::span<const std::int32_t> numbers, Tensor out) = 0;

  // Makes the contents of page `to` those of page `from`.
  virtual void copy_page(const KvPages& kv, std::int32_t from, std::int32_t to) = 0;

  // --- steps that repeat, such as the next token of each of some sequences
  // Adds rows that stand for nothing to the `rows` of the last set_rows, so that steps of about the same size are
  // alike, and returns how many there are then, at most `limit`. Operations on the rows then take tensors of so many;
  // what those hold in the added rows is not used, and may be anything afterwards.
  virtual std::int64_t pad_rows(std::int64_t rows, [[maybe_unused]] std::int64_t limit) { return rows; }
  // Runs `operations`, which calls embed, attention, layer_norm, linear and norm_linear of this backend, and between
  // them what it is given. A backend may keep what they queue and queue that again, without a call, for another step
  // with the same key: it stands for everything that the calls and their arguments depend on but the rows of set_rows
  // and the contents of memory. forget_steps: before something that they used ceases to exist.
  using StepKey = std::array<std::uintptr_t, 3>;
  using Progress = std::function<void()>;
  virtual void step([[maybe_unused]] const StepKey& key, const Progress& between,
                    const std::function<void(const Progress& between)>& operations) {
    operations(between);
  }
  virtual void forget_steps() noexcept {}

  // --- operations on any rows; layer_norm may work in place, other outputs must not overlap inputs
  // out = (x - mean) / sqrt(variance + epsilon) * gain + bias, per row; x, gain and bias are float32, gain and bias
  // (1, cols).
  virtual void layer_norm(Tensor x, Tensor gain, Tensor bias, float epsilon, Tensor out) = 0;
  // out (rows, w.out) = epilogue(x (rows, w.in) * w + bias); bias is (1, w.out), of out's dtype, or empty (data ==
  // nullptr). An output that is added to is float32.
  virtual void linear(Tensor x, const Matrix& w, Tensor bias, Epilogue epilogue, Tensor out) = 0;
  // layer_norm of x into `normal`, then linear of `normal`; a backend may do both at once, so what `normal` holds then
  // is not defined.
  struct Norm {
    Tensor gain, bias;
    float epsilon = 0.0F;
  };
  virtual void norm_linear(Tensor x, const Norm& norm, Tensor normal, const Matrix& w, Tensor bias, Epilogue epilogue,
                           Tensor out) {
    layer_norm(x, norm.gain, norm.bias, norm.epsilon, normal);
    linear(normal, w, bias, epilogue, out);
  }
  // out(i, :) = x(rows[i], :).
  virtual void gather(Tensor x, std::span<const std::int32_t> rows, Tensor out) = 0;
  // The summaries of rows of logits (rows, vocab), float32, one query per row (host memory, copied): logits.hpp.
  // `out` is of the backend's memory, summary_bytes(queries) long, aligned to 4 bytes. Each row's answer depends on
  // that row and its query alone.
  virtual void summarize_logits(Tensor logits, std::span<const LogitsQuery> queries, void* out) = 0;

  virtual void synchronize() = 0;
  // True when nothing is queued: synchronize would return at once. Polls.
  virtual bool idle() { return true; }
};

// Naive loops, double accumulation: the written definition of every operation above.
std::unique_ptr<Backend> make_reference_backend();

// Instruction sets of the CPU backend; all give the same bits. kBest is the last of the others that this CPU has.
enum class Simd : std::uint8_t { kBest, kAvx2, kAvx512, kAvx512Vnni, kNeon };
inline constexpr std::array kEverySimd = {Simd::kAvx2, Simd::kAvx512, Simd::kAvx512Vnni, Simd::kNeon};
struct CpuOptions {
  int threads = 1;
  Simd simd = Simd::kBest;
  std::optional<std::int64_t> budget_bytes = {};  // for all buffers
};
// Throws DeviceError when the CPU lacks the instruction set (x86 needs AVX2 with FMA and F16C).
std::unique_ptr<Backend> make_cpu_backend(const CpuOptions& options);
// Name of the instruction set that `simd` stands for on this CPU ("AVX2", "AVX-512", ...), empty if it has none such.
std::string simd_name(Simd simd);

// Runs every operation on `inner` and on the reference, and throws std::logic_error that names the operation, the worst
// element and both values when they differ by more than the dtypes allow. For tests and for debugging; slow.
std::unique_ptr<Backend> make_checking_backend(std::unique_ptr<Backend> inner);

}  // namespace stagecoach
