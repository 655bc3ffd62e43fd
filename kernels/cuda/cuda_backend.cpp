#include "kernels/cuda/cuda_backend.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "kernels/checks.hpp"
#include "kernels/cuda/attention.hpp"
#include "kernels/cuda/device_copies.hpp"
#include "kernels/cuda/device_matrix.hpp"
#include "kernels/cuda/device_pool.hpp"
#include "kernels/cuda/device_rows.hpp"
#include "kernels/cuda/linear.hpp"
#include "kernels/cuda/logits.hpp"
#include "kernels/cuda/rows.hpp"
#include "kernels/cuda/upload_ring.hpp"
#include "kernels/row_set.hpp"

namespace stagecoach {
namespace {

using namespace cuda;

// Half is for cuBLASLt itself, as much as its documentation advises for recent devices.
constexpr std::int64_t kWorkspaceBytes = 64 << 20;
constexpr std::int64_t kPieceBytes = 4 << 20;  // of weights on their way to the device
constexpr std::int64_t kUsualHeadDim = 16;     // at least, where scratch memory is planned

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
        pool_(describe(device_), options.pool_bytes),
        stream_(make_stream()),
        workspace_(pool_.allocate(std::min(kWorkspaceBytes, pool_.bytes() / 8 / 512 * 512))),
        linear_(deterministic_, workspace_.data(), workspace_.bytes()) {}

  ~CudaBackend() override {
    cudaSetDevice(device_.index);
    cudaStreamSynchronize(stream_.get());  // what is queued still uses the pool
  }

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
      std::memcpy(uploads_.claim(piece), static_cast<const std::byte*>(host) + done, piece);
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
  std::int64_t bytes_allocated() const override { return pool_.used(); }
  std::int64_t peak_bytes() const override { return pool_.peak(); }
  std::optional<std::int64_t> memory_limit() const override { return pool_.bytes(); }

  bool in_host_memory() const override { return false; }
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

  DType activation_dtype(DType weights) const override { return weights; }
  std::int64_t matrix_bytes(std::int64_t in, std::int64_t out, DType dtype) const override {
    check_matrix_shape(in, out);
    if (dtype == DType::kInt8) throw std::invalid_argument("int8 matrices are not for CUDA devices");
    return device_matrix_bytes(in, out, dtype);
  }
  std::int64_t kv_page_bytes(std::int32_t n_head, std::int32_t head_dim, DType dtype) const override {
    return cuda::kv_page_bytes(n_head, head_dim, dtype);
  }
  std::int64_t scratch_bytes(std::int64_t rows, std::int64_t columns) const override {
    const auto heads = static_cast<std::int32_t>((columns + kUsualHeadDim - 1) / kUsualHeadDim);
    return kWorkspaceBytes + kPieceBytes + attention_scratch_bytes(rows, heads, kUsualHeadDim);
  }

  void load_rows(Matrix& matrix, WeightLayout layout, std::int64_t first_row, Tensor host) override {
    check_load_rows(matrix, layout, first_row, host);
    enter();
    const std::int64_t row_bytes = host.cols * size_of(host.dtype);
    const std::int64_t at_once = std::max<std::int64_t>(1, kPieceBytes / row_bytes);
    for (std::int64_t r = 0; r < host.rows; r += at_once) {
      const std::int64_t rows = std::min(at_once, host.rows - r);
      const auto bytes = static_cast<std::size_t>(rows * row_bytes);
      std::byte* staged = uploads_.claim(bytes);
      for (std::int64_t i = 0; i < rows; ++i) {
        std::memcpy(staged + i * row_bytes, host.row(r + i), static_cast<std::size_t>(row_bytes));
      }
      void* source = at_least(piece_, static_cast<std::int64_t>(bytes));
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
      read(first, count, uploads_.claim(bytes));
      auto* panels = static_cast<std::byte*>(at_least(piece_, static_cast<std::int64_t>(bytes)));
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
    planned_heads_ = 0;
    on_device_.rows = rows_.rows();
    on_device_.table_stride = view.table_stride;
    if (rows_.rows() == 0) return;
    // One copy; what a row set leaves out (tokens) takes no room.
    const auto words = view.tokens.size() + view.positions.size() + view.sequences.size() + view.pages.size();
    auto* device = static_cast<std::int32_t*>(at_least(row_words_, static_cast<std::int64_t>(words) * 4));
    std::byte* staged = uploads_.claim(words * 4);
    const auto place = [&](std::span<const std::int32_t> values) {
      std::memcpy(staged, values.data(), values.size_bytes());
      staged += values.size_bytes();
      return std::exchange(device, device + values.size());
    };
    auto* first = device;
    on_device_.positions = place(view.positions);
    on_device_.sequences = place(view.sequences);
    on_device_.pages = place(view.pages);
    on_device_.tokens = view.tokens.empty() ? nullptr : place(view.tokens);
    uploads_.send(first, words * 4, stream_.get());
  }

  void embed(const Matrix& wte, Tensor wpe, Tensor out) override {
    check_embed(rows_, wte, wpe, out);
    enter();
    cuda::embed(stream_.get(), on_device_.tokens, on_device_.positions, wte, wpe, out);
  }

  void attention(Tensor qkv, const KvPages& kv, float scale, Tensor out) override {
    stagecoach::check_attention(rows_, qkv, kv, out);
    enter();
    if (rows_.rows() == 0) return;
    plan_attention(kv.n_head);
    void* scratch = at_least(attention_scratch_, attention_scratch_bytes(rows_.rows(), kv.n_head, kv.head_dim));
    cuda::attention(stream_.get(), on_device_, plan_, static_cast<const std::int32_t*>(plan_words_.data()), qkv, kv,
                    {.scale = scale}, out, scratch);
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

  void gather(Tensor x, std::span<const std::int32_t> rows, Tensor out) override {
    check_gather(x, rows, out);
    enter();
    if (rows.empty()) return;
    void* device = at_least(gather_words_, static_cast<std::int64_t>(rows.size_bytes()));
    std::memcpy(uploads_.claim(rows.size_bytes()), rows.data(), rows.size_bytes());
    uploads_.send(device, rows.size_bytes(), stream_.get());
    cuda::gather(stream_.get(), x, static_cast<const std::int32_t*>(device), out);
  }

  void summarize_logits(Tensor logits, std::span<const LogitsQuery> queries, void* out) override {
    check_summarize_logits(logits, queries, out);
    enter();
    if (queries.empty()) return;
    const std::size_t bytes = packed_bytes(queries, logits.cols);
    void* device = at_least(query_bytes_, static_cast<std::int64_t>(bytes));
    pack(queries, logits.cols, uploads_.claim(bytes));
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
  void enter() const { check(cudaSetDevice(device_.index)); }

  static Tensor columns_of(Tensor t, std::int64_t first, std::int64_t count) {
    return {t.row(0) + first * size_of(t.dtype), t.dtype, t.rows, count, t.stride};
  }

  static void release_host(void* backend, void* memory, std::size_t) noexcept {
    cudaSetDevice(static_cast<CudaBackend*>(backend)->device_.index);
    cudaDeviceSynchronize();  // copies may be under way
    cudaFreeHost(memory);
  }

  // Of at least `bytes`; grows to twice what is asked for, so that it soon stops growing. Reuse is safe: the stream
  // runs in order.
  void* at_least(Buffer& buffer, std::int64_t bytes) {
    if (static_cast<std::int64_t>(buffer.bytes()) < bytes) {
      const bool first = !buffer;
      buffer = Buffer();
      buffer = pool_.allocate(first ? bytes : 2 * bytes);
    }
    return buffer.data();
  }

  void plan_attention(std::int32_t n_head) {
    if (planned_heads_ == n_head) return;
    plan_.assign(rows_, deterministic_, multiprocessors_, n_head);
    planned_heads_ = n_head;
    const auto words = plan_.words();
    if (words.empty()) return;
    void* device = at_least(plan_words_, static_cast<std::int64_t>(words.size_bytes()));
    std::memcpy(uploads_.claim(words.size_bytes()), words.data(), words.size_bytes());
    uploads_.send(device, words.size_bytes(), stream_.get());
  }

  CudaDevice device_;
  int multiprocessors_;
  bool deterministic_;
  DevicePool pool_;  // before the buffers
  Stream stream_;
  DeviceCopies copies_;
  UploadRing uploads_;
  Buffer workspace_;
  Linear linear_;

  Buffer piece_;      // weights before they are laid out
  Buffer row_words_;  // of the last set_rows
  Buffer plan_words_;
  Buffer gather_words_;
  Buffer query_bytes_;
  Buffer attention_scratch_;
  RowSet rows_;
  DeviceRows on_device_;
  AttentionPlan plan_;
  std::int32_t planned_heads_ = 0;  // 0: the rows have changed
};

}  // namespace

std::vector<CudaDevice> cuda_devices() {
  int count = 0;
  const cudaError_t result = cudaGetDeviceCount(&count);
  if (result != cudaSuccess || count == 0) {
    cudaGetLastError();
    throw DeviceError(fmt::format("no CUDA device: {}; use --device cpu, or a host with a GPU and its driver",
                                  result == cudaSuccess ? "none is visible" : cudaGetErrorString(result)));
  }
  std::vector<CudaDevice> devices;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties = {};
    check(cudaGetDeviceProperties(&properties, i));
    devices.push_back(
        {i, properties.name,
         fmt::format("{:04x}:{:02x}:{:02x}", properties.pciDomainID, properties.pciBusID, properties.pciDeviceID),
         static_cast<std::int64_t>(properties.totalGlobalMem)});
  }
  return devices;
}

std::int64_t cuda_free_bytes(int device) {
  check(cudaSetDevice(device));
  std::size_t free = 0;
  std::size_t total = 0;
  check(cudaMemGetInfo(&free, &total));
  return static_cast<std::int64_t>(free);
}

std::string cuda_versions() {
  int runtime = 0;
  if (cudaRuntimeGetVersion(&runtime) != cudaSuccess) return "CUDA";
  const std::size_t blas = cublasLtGetVersion();
  return fmt::format("CUDA {}.{}, cuBLASLt {}.{}", runtime / 1000, runtime % 1000 / 10, blas / 10000, blas / 100 % 100);
}

std::unique_ptr<Backend> make_cuda_backend(const CudaOptions& options) {
  return std::make_unique<CudaBackend>(options);
}

}  // namespace stagecoach
