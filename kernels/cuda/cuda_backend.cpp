#include "kernels/cuda/cuda_backend.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "kernels/checks.hpp"
#include "kernels/cuda/attention.hpp"
#include "kernels/cuda/device_copies.hpp"
#include "kernels/cuda/device_matrix.hpp"
#include "kernels/cuda/device_parts.hpp"
#include "kernels/cuda/device_pool.hpp"
#include "kernels/cuda/device_queue.hpp"
#include "kernels/cuda/device_rows.hpp"
#include "kernels/cuda/few_rows.hpp"
#include "kernels/cuda/linear.hpp"
#include "kernels/cuda/logits.hpp"
#include "kernels/cuda/own_memory.hpp"
#include "kernels/cuda/recorded_steps.hpp"
#include "kernels/cuda/row_words.hpp"
#include "kernels/cuda/rows.hpp"
#include "kernels/cuda/upload_ring.hpp"
#include "kernels/row_set.hpp"

namespace stagecoach {
namespace {

using namespace cuda;

CudaDevice device_at(int index) {
  const std::vector<CudaDevice> devices = cuda_devices();
  if (index < 0 || index >= static_cast<int>(devices.size())) {
    throw DeviceError(fmt::format("there is no CUDA device {}; this process sees {} (CUDA_VISIBLE_DEVICES chooses)",
                                  index, devices.size()));
  }
  check(cudaSetDevice(index));
  return devices[static_cast<std::size_t>(index)];
}

int multiprocessors_of(int device) {
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

std::string describe(const CudaDevice& device) {
  return fmt::format("CUDA device {} ({}, {})", device.index, device.name, device.pci);
}

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(const CudaOptions& options)
      : device_(device_at(options.device)),
        multiprocessors_(multiprocessors_of(options.device)),
        deterministic_(options.deterministic),
        graphs_(options.graphs),
        pool_(describe(device_), options.pool_bytes),
        stream_(make_stream()),
        queue_{device_.index, stream_.get()},
        layout_(cuda_layout(pool_.bytes())),
        workspace_(pool_.allocate(workspace_bytes(pool_.bytes()))),
        linear_(deterministic_, workspace_.data(), workspace_.bytes()) {}

  ~CudaBackend() override {
    cudaSetDevice(device_.index);
    cudaStreamSynchronize(stream_.get());  // what is queued still uses the pool
  }

  const DeviceQueue& queue() const { return queue_; }

  std::string name() const override {
    return fmt::format("cuda ({}, device {}{})", device_.name, device_.index, deterministic_ ? ", deterministic" : "");
  }

  Buffer allocate(std::int64_t bytes) override {
    enter();
    Buffer buffer = pool_.allocate(bytes);
    check(cudaMemsetAsync(buffer.data(), 0, buffer.bytes(), stream_.get()));
    check(cudaStreamSynchronize(stream_.get()));  // uploads beside the queue may follow
    return buffer;
  }
  void upload(void* device, const void* host, std::int64_t bytes) override {
    enter();
    for (std::int64_t done = 0; done < bytes; done += kPieceBytes) {
      const auto piece = static_cast<std::size_t>(std::min(kPieceBytes, bytes - done));
      std::memcpy(claim(piece), static_cast<const std::byte*>(host) + done, piece);
      uploads_.send(static_cast<std::byte*>(device) + done, piece, stream_.get());
    }
  }
  void download(void* host, const void* device, std::int64_t bytes) override {
    enter();
    if (bytes > 0) {
      check(cudaMemcpyAsync(host, device, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToHost, stream_.get()));
    }
    check(cudaStreamSynchronize(stream_.get()));
  }
  std::int64_t bytes_allocated() const override { return pool_.used() + steps_.bytes(); }
  std::int64_t peak_bytes() const override { return pool_.peak() + steps_.peak_bytes(); }
  std::optional<std::int64_t> memory_limit() const override { return pool_.bytes(); }

  Buffer allocate_host(std::int64_t bytes) override {
    enter();
    Pinned memory = make_pinned(static_cast<std::size_t>(std::max<std::int64_t>(bytes, 1)));
    return {memory.release(), static_cast<std::size_t>(bytes), release_host, this};
  }
  Copy start_download(void* host, const void* device, std::int64_t bytes) override {
    enter();
    return copies_.download(stream_.get(), host, device, bytes);
  }
  Copy start_upload(void* device, const void* host, std::int64_t bytes) override {
    enter();
    return copies_.upload(stream_.get(), device, host, bytes);
  }
  bool finished(Copy copy) override {
    enter();
    return copies_.finished(copy);
  }

  const MemoryLayout& layout() const override { return *layout_; }
  void reserve(const OperationLimits& limits) override {
    enter();
    const OwnMemory own = own_memory(pool_.bytes(), limits);
    const auto make = [this](Buffer& buffer, std::int64_t bytes) {
      buffer = Buffer();
      if (bytes > 0) buffer = pool_.allocate(bytes);
    };
    make(piece_, own.piece);
    make(row_buffer_, own.row_words);
    make(plan_words_, own.plan_words);
    make(gather_words_, own.gather_words);
    make(query_bytes_, own.query_bytes);
    make(attention_scratch_, own.attention);
    parts_.reserve(own);
    planned_heads_ = 0;  // the plan's words went with their buffer
    steps_.forget();     // which hold the buffers' addresses
  }

  void load_rows(Matrix& matrix, WeightLayout layout, std::int64_t first_row, Tensor host) override {
    check_load_rows(matrix, layout, first_row, host);
    enter();
    const std::int64_t row_bytes = host.cols * size_of(host.dtype);
    const std::int64_t at_once = std::max<std::int64_t>(1, kPieceBytes / row_bytes);
    for (std::int64_t r = 0; r < host.rows; r += at_once) {
      const std::int64_t rows = std::min(at_once, host.rows - r);
      const auto bytes = static_cast<std::size_t>(rows * row_bytes);
      std::byte* staged = claim(bytes);
      for (std::int64_t i = 0; i < rows; ++i) {
        std::memcpy(staged + i * row_bytes, host.row(r + i), static_cast<std::size_t>(row_bytes));
      }
      void* source = pool_.at_least(piece_, std::max(kPieceBytes, static_cast<std::int64_t>(bytes)));
      uploads_.send(source, bytes, stream_.get());
      const Tensor table = as_tensor(matrix);
      const bool in_out = layout == WeightLayout::kInOut;
      const Tensor target = in_out ? columns_of(table, first_row + r, rows) : table.slice(first_row + r, rows);
      lay_out(stream_.get(), make_tensor(source, host.dtype, rows, host.cols), in_out, target);
    }
  }

  // A panel is the (in, kPanel) array of the outputs it holds.
  void load_panels(Matrix& matrix, DType stored, const PanelReader& read) override {
    check_load_panels(matrix, stored);
    enter();
    const PackedLayout packed{matrix.in, matrix.out, stored};
    const std::int64_t at_once = std::max<std::int64_t>(1, kPieceBytes / packed.panel_bytes());
    for (std::int64_t first = 0; first < packed.panels(); first += at_once) {
      const std::int64_t count = std::min(at_once, packed.panels() - first);
      const auto bytes = static_cast<std::size_t>(count * packed.panel_bytes());
      read(first, count, claim(bytes));
      auto* panels =
          static_cast<std::byte*>(pool_.at_least(piece_, std::max(kPieceBytes, static_cast<std::int64_t>(bytes))));
      uploads_.send(panels, bytes, stream_.get());
      for (std::int64_t p = first; p < first + count; ++p) {
        const Tensor source{panels + (p - first) * packed.panel_bytes(), stored, packed.in, packed.columns(p), kPanel};
        lay_out(stream_.get(), source, true, as_tensor(matrix).slice(p * kPanel, packed.columns(p)));
      }
    }
  }

  void set_rows(const RowsView& view) override {
    enter();
    rows_.assign(view);
    row_words_.assign(view);
    planned_heads_ = 0;
    parts_.forget_plans();
    on_device_ = {};
    if (rows_.rows() == 0) return;
    void* device =
        pool_.at_least(row_buffer_, std::max(kLeastStepBytes, static_cast<std::int64_t>(row_words_.bytes())));
    row_words_.write(view, claim(row_words_.bytes()));
    uploads_.send(device, row_words_.bytes(), stream_.get());
    on_device_ = row_words_.at(static_cast<const std::int32_t*>(device));
  }

  std::int64_t pad_rows(std::int64_t rows, std::int64_t limit) override {
    const std::int64_t padded = row_words_.padded_rows();
    if (!graphs_ || !row_words_.repeats() || rows != rows_.rows() || padded > limit) return rows;
    on_device_.rows = padded;
    return padded;
  }

  void step(const StepKey& key, const Progress& between,
            const std::function<void(const Progress&)>& operations) override {
    enter();
    if (!graphs_ || !row_words_.repeats()) return operations(between);
    if (last_heads_ > 0) plan_attention(last_heads_);  // what it uploads is not part of what is recorded
    const RecordedSteps::Key whole = whole_key(key);
    if (steps_.replay(stream_.get(), whole)) return;
    const auto record = [&] {
      operations([] {});
      return whole_key(key) == whole;
    };
    if (!steps_.record(stream_.get(), whole, record)) operations(between);
  }
  void forget_steps() noexcept override {
    cudaSetDevice(device_.index);
    steps_.forget();
  }

  void embed(const Matrix& wte, Tensor wpe, Tensor out) override {
    check_embed(rows_, wte, wpe, without_padding(out));
    enter();
    if (rows_.rows() == 0) return;
    cuda::embed(stream_.get(), on_device_.tokens, on_device_.positions, wte, wpe, out);
  }

  void attention(Tensor qkv, const KvPages& kv, float scale, Tensor out) override {
    stagecoach::check_attention(rows_, without_padding(qkv), kv, without_padding(out));
    enter();
    if (rows_.rows() == 0) return;
    last_heads_ = kv.n_head;
    plan_attention(kv.n_head);
    void* scratch =
        pool_.at_least(attention_scratch_, attention_scratch_bytes(on_device_.rows, kv.n_head, kv.head_dim));
    cuda::attention(stream_.get(), on_device_, plan_, static_cast<const std::int32_t*>(plan_words_.data()), qkv, kv,
                    {.scale = scale}, out, scratch);
  }

  void append(Tensor qkv, const KvPages& kv) override {
    check_append(rows_, without_padding(qkv), kv);
    enter_unrecorded();
    if (rows_.rows() > 0) cuda::append(stream_.get(), on_device_, qkv, kv);
  }

  void attention_parts(Tensor qkv, const KvPages& kv, float scale, std::int64_t first_row, std::int64_t rows,
                       Tensor parts) override {
    stagecoach::check_attention_parts(rows_, without_padding(qkv), kv, first_row, rows, parts);
    enter_unrecorded();
    if (parts.rows == 0) return;
    const auto [plan, words] = parts_.plan(rows_, kv.n_head, first_row, rows, deterministic_, multiprocessors_);
    void* scratch =
        pool_.at_least(attention_scratch_, attention_scratch_bytes(on_device_.rows, kv.n_head, kv.head_dim));
    cuda::attention_parts(stream_.get(), on_device_, plan, words, qkv, kv, {.scale = scale}, parts, scratch);
  }

  void merge_parts(Tensor parts, std::int32_t n_head, std::span<const std::int32_t> first,
                   std::span<const std::int32_t> numbers, Tensor out) override {
    check_merge_parts(parts, n_head, first, numbers, out);
    enter_unrecorded();
    if (out.rows == 0) return;
    cuda::merge_parts(stream_.get(), parts, n_head, parts_.merging(first, numbers), out);
  }

  void copy_page(const KvPages& kv, std::int32_t from, std::int32_t to) override {
    check_copy_page(kv, from, to);
    enter();
    cuda::copy_page(stream_.get(), kv, from, to);
  }

  void layer_norm(Tensor x, Tensor gain, Tensor bias, float epsilon, Tensor out) override {
    check_layer_norm(x, gain, bias, out);
    enter();
    cuda::layer_norm(stream_.get(), x, gain, bias, epsilon, out);
  }

  void linear(Tensor x, const Matrix& w, Tensor bias, Epilogue epilogue, Tensor out) override {
    check_linear(x, w, bias, epilogue, out);
    enter();
    linear_.run(stream_.get(), x, w, bias, epilogue, out);
  }

  void norm_linear(Tensor x, const Norm& norm, Tensor normal, const Matrix& w, Tensor bias, Epilogue epilogue,
                   Tensor out) override {
    if (normal.dtype != w.dtype || !norm_fits_few_rows(x, w)) {
      return Backend::norm_linear(x, norm, normal, w, bias, epilogue, out);
    }
    check_layer_norm(x, norm.gain, norm.bias, normal);
    check_linear(normal, w, bias, epilogue, out);
    enter();
    norm_few_rows_linear(stream_.get(), x, norm.gain, norm.bias, norm.epsilon, w, bias, epilogue, out);
  }

  void gather(Tensor x, std::span<const std::int32_t> rows, Tensor out) override {
    check_gather(x, rows, out);
    enter();
    if (rows.empty()) return;
    void* device = pool_.at_least(gather_words_, static_cast<std::int64_t>(rows.size_bytes()));
    std::memcpy(claim(rows.size_bytes()), rows.data(), rows.size_bytes());
    uploads_.send(device, rows.size_bytes(), stream_.get());
    cuda::gather(stream_.get(), x, static_cast<const std::int32_t*>(device), out);
  }

  void summarize_logits(Tensor logits, std::span<const LogitsQuery> queries, void* out) override {
    check_summarize_logits(logits, queries, out);
    enter();
    if (queries.empty()) return;
    const std::size_t bytes = packed_bytes(queries, logits.cols);
    void* device = pool_.at_least(query_bytes_, static_cast<std::int64_t>(bytes));
    pack(queries, logits.cols, claim(bytes));
    uploads_.send(device, bytes, stream_.get());
    cuda::summarize_logits(stream_.get(), logits, device, out);
  }

  void synchronize() override {
    enter();
    check(cudaStreamSynchronize(stream_.get()));
    copies_.synchronize();
  }
  bool idle() override {
    enter();
    const cudaError_t result = cudaStreamQuery(stream_.get());
    if (result == cudaErrorNotReady) return false;
    check(result);
    return true;
  }

 private:
  // The current device belongs to the calling thread, and more than one may load and run.
  void enter() const { queue_.enter(); }

  // What depends on more than the key of a step says.
  void enter_unrecorded() const {
    if (steps_.recording()) throw DeviceError("CUDA: a step with attention in parts cannot be recorded");
    enter();
  }

  // Room for an upload. What a graph copies would be what lies there when it is replayed.
  std::byte* claim(std::size_t bytes) {
    if (steps_.recording()) throw DeviceError("CUDA: a step that uploads cannot be recorded");
    return uploads_.claim(bytes);
  }

  // A tensor of padded rows as one of the rows of set_rows, for checks; of any other number as it is.
  Tensor without_padding(Tensor t) const {
    if (t.rows == on_device_.rows) t.rows = rows_.rows();
    return t;
  }

  // What launches of a step depend on: the caller's word, shapes, and where our own buffers are.
  RecordedSteps::Key whole_key(const StepKey& key) const {
    const auto address = [](const void* at) { return static_cast<std::int64_t>(reinterpret_cast<std::intptr_t>(at)); };
    return {static_cast<std::int64_t>(key[0]),
            static_cast<std::int64_t>(key[1]),
            static_cast<std::int64_t>(key[2]),
            on_device_.rows,
            on_device_.table_stride,
            address(on_device_.positions),
            address(on_device_.tokens),
            address(plan_words_.data()),
            address(attention_scratch_.data()),
            planned_heads_,
            plan_.shape().singles,
            plan_.shape().combines,
            plan_.independent() ? 1 : 0,
            plan_.merges_segments() ? 1 : 0};
  }

  static Tensor columns_of(Tensor t, std::int64_t first, std::int64_t count) {
    return {t.row(0) + first * size_of(t.dtype), t.dtype, t.rows, count, t.stride};
  }

  static void release_host(void* backend, void* memory, std::size_t) noexcept {
    cudaSetDevice(static_cast<CudaBackend*>(backend)->device_.index);
    cudaDeviceSynchronize();  // copies may be under way
    cudaFreeHost(memory);
  }

  void plan_attention(std::int32_t n_head) {
    if (planned_heads_ == n_head) return;
    plan_.assign(rows_, deterministic_, multiprocessors_, n_head);
    const auto words = plan_.words();
    void* device =
        pool_.at_least(plan_words_, std::max(kLeastStepBytes, static_cast<std::int64_t>(words.size_bytes())));
    std::memcpy(claim(words.size_bytes()), words.data(), words.size_bytes());
    uploads_.send(device, words.size_bytes(), stream_.get());
    planned_heads_ = n_head;
  }

  CudaDevice device_;
  int multiprocessors_;
  bool deterministic_;
  bool graphs_;
  DevicePool pool_;  // before the buffers
  Stream stream_;
  DeviceQueue queue_;
  DeviceCopies copies_;
  UploadRing uploads_;
  std::unique_ptr<MemoryLayout> layout_;
  Buffer workspace_;
  Linear linear_;

  Buffer piece_;       // weights before they are laid out
  Buffer row_buffer_;  // row_words_ of the last set_rows
  Buffer plan_words_;
  Buffer gather_words_;
  Buffer query_bytes_;
  Buffer attention_scratch_;
  RowSet rows_;
  RowWords row_words_;
  DeviceRows on_device_;
  AttentionPlan plan_;
  std::int32_t planned_heads_ = 0;  // 0: the rows have changed
  std::int32_t last_heads_ = 0;     // of the last attention
  DeviceParts parts_{pool_, uploads_, stream_.get()};
  RecordedSteps steps_;  // after the buffers that they use
};

}  // namespace

std::unique_ptr<Backend> make_cuda_backend(const CudaOptions& options) {
  return std::make_unique<CudaBackend>(options);
}

const DeviceQueue& device_queue(const Backend& backend) {
  if (const auto* cuda = dynamic_cast<const CudaBackend*>(&backend)) return cuda->queue();
  throw std::invalid_argument(fmt::format("{} has no CUDA stream", backend.name()));
}

std::optional<bool> can_reach(int device, const std::string& pci) {
  for (const CudaDevice& other : cuda_devices()) {
    if (other.pci != pci || other.index == device) continue;
    int can = 0;
    check(cudaDeviceCanAccessPeer(&can, device, other.index));
    return can != 0;
  }
  return std::nullopt;
}

}  // namespace stagecoach
