// The written definition of every operation: naive loops, double accumulation, one row at a time.
//
// Layouts: a matrix is as reference_matrix.hpp says; a KV page is (kPagePositions, 2, n_head, head_dim), K before V.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>
#include <vector>

#include "kernels/backend.hpp"
#include "kernels/checks.hpp"
#include "kernels/convert.hpp"
#include "kernels/host_memory.hpp"
#include "kernels/reference/reference_matrix.hpp"

namespace stagecoach {
namespace {

double activate(Activation activation, double x) {
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kGeluTanh:
      return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
    case Activation::kGeluErf:
      return 0.5 * x * (1.0 + std::erf(x / std::numbers::sqrt2));
    case Activation::kRelu:
      return x < 0.0 ? 0.0 : x;
    case Activation::kSilu:
      return x / (1.0 + std::exp(-x));
  }
  return x;
}

class ReferenceLayout final : public MemoryLayout {
 public:
  std::int64_t matrix_bytes(std::int64_t in, std::int64_t out, DType dtype) const override {
    check_matrix_shape(in, out);
    return ReferenceMatrix::bytes(in, out, dtype);
  }
  std::int64_t kv_page_bytes(std::int32_t n_head, std::int32_t head_dim, DType dtype) const override {
    return std::int64_t{2} * kPagePositions * n_head * head_dim * size_of(dtype);
  }
  std::int64_t own_bytes(const OperationLimits&) const override { return 0; }
};

class ReferenceBackend final : public Backend {
 public:
  std::string name() const override { return "reference"; }

  Buffer allocate(std::int64_t bytes) override { return memory_.allocate(bytes); }
  void upload(void* device, const void* host, std::int64_t bytes) override {
    if (bytes > 0) std::memcpy(device, host, static_cast<std::size_t>(bytes));
  }
  void download(void* host, const void* device, std::int64_t bytes) override {
    if (bytes > 0) std::memcpy(host, device, static_cast<std::size_t>(bytes));
  }
  std::int64_t bytes_allocated() const override { return memory_.bytes_allocated(); }
  std::int64_t peak_bytes() const override { return memory_.peak_bytes(); }

  const MemoryLayout& layout() const override { return layout_; }
  void reserve(const OperationLimits&) override {}

  void load_rows(Matrix& matrix, WeightLayout layout, std::int64_t first_row, Tensor host) override {
    check_load_rows(matrix, layout, first_row, host);
    if (matrix.dtype == DType::kInt8) return load_int8_rows(matrix, layout, first_row, host);
    for (std::int64_t r = 0; r < host.rows; ++r) {
      for (std::int64_t c = 0; c < host.cols; ++c) {
        const std::int64_t k = layout == WeightLayout::kInOut ? first_row + r : c;
        const std::int64_t n = layout == WeightLayout::kInOut ? c : first_row + r;
        store_element(matrix.storage.data(), matrix.dtype, k * matrix.out + n,
                      load_element(host.row(r), host.dtype, c));
      }
    }
  }

  void load_panels(Matrix& matrix, DType stored, const PanelReader& read) override {
    check_load_panels(matrix, stored);
    const PackedLayout layout{matrix.in, matrix.out, stored};
    std::vector<std::byte> panels(static_cast<std::size_t>(layout.bytes()));
    read(0, layout.panels(), panels.data());
    const PackedMatrix packed{layout, panels.data()};
    if (stored == DType::kInt8) return load_int8_panels(matrix, packed);
    std::vector<float> values(static_cast<std::size_t>(matrix.in * matrix.out));
    const Tensor rows = make_tensor(values.data(), DType::kFloat32, matrix.in, matrix.out);
    for (std::int64_t p = 0; p < layout.panels(); ++p) {
      unpack_panel(packed, p, WeightLayout::kInOut,
                   {rows.f32(0) + p * kPanel, rows.dtype, rows.rows, layout.columns(p), rows.stride});
    }
    load_rows(matrix, WeightLayout::kInOut, 0, rows);
  }

  void set_rows(const RowsView& rows) override { rows_.assign(rows); }

  void embed(const Matrix& wte, Tensor wpe, Tensor out) override {
    check_embed(rows_, wte, wpe, out);
    for (std::int64_t r = 0; r < out.rows; ++r) {
      const std::int32_t token = rows_.tokens()[static_cast<std::size_t>(r)];
      const std::int32_t position = rows_.positions()[static_cast<std::size_t>(r)];
      for (std::int64_t c = 0; c < out.cols; ++c) {
        out.f32(r)[c] = ReferenceMatrix::element(wte, c, token) + load_element(wpe.row(position), wpe.dtype, c);
      }
    }
  }

  void attention(Tensor qkv, const KvPages& kv, float scale, Tensor out) override {
    check_attention(rows_, qkv, kv, out);
    append_rows(qkv, kv);
    for (std::int64_t r = 0; r < out.rows; ++r) {
      for (std::int32_t h = 0; h < kv.n_head; ++h) {
        const Softmax sums = attend(qkv, kv, scale, r, h, 0, rows_.positions()[static_cast<std::size_t>(r)] + 1);
        for (std::int32_t d = 0; d < kv.head_dim; ++d) {
          store_element(out.row(r), out.dtype, std::int64_t{h} * kv.head_dim + d,
                        static_cast<float>(sums.out[static_cast<std::size_t>(d)] / sums.sum));
        }
      }
    }
  }

  void append(Tensor qkv, const KvPages& kv) override {
    check_append(rows_, qkv, kv);
    append_rows(qkv, kv);
  }

  void attention_parts(Tensor qkv, const KvPages& kv, float scale, std::int64_t first_row, std::int64_t rows,
                       Tensor parts) override {
    check_attention_parts(rows_, qkv, kv, first_row, rows, parts);
    std::int64_t part = 0;
    for (std::int64_t r = first_row; r < first_row + rows; ++r) {
      const std::int32_t last = rows_.positions()[static_cast<std::size_t>(r)];
      const std::int32_t sequence = rows_.sequences()[static_cast<std::size_t>(r)];
      for (std::int64_t i = 0; i < rows_.parts(r); ++i, ++part) {
        const std::int32_t begin = rows_.segments(sequence)[static_cast<std::size_t>(i)] * kSegmentPositions;
        const std::int32_t end = std::min(last + 1, begin + kSegmentPositions);
        for (std::int32_t h = 0; h < kv.n_head; ++h) {
          const Softmax sums = attend(qkv, kv, scale, r, h, begin, end);
          for (std::int32_t d = 0; d < kv.head_dim; ++d) {
            parts.f32(part)[h * kv.head_dim + d] = static_cast<float>(sums.out[static_cast<std::size_t>(d)]);
          }
          float* scalars = parts.f32(part) + kv.n_head * kv.head_dim + 2 * h;
          scalars[0] = static_cast<float>(sums.largest);
          scalars[1] = static_cast<float>(sums.sum);
        }
      }
    }
  }

  void merge_parts(Tensor parts, std::int32_t n_head, std::span<const std::int32_t> first,
                   std::span<const std::int32_t> numbers, Tensor out) override {
    check_merge_parts(parts, n_head, first, numbers, out);
    const std::int64_t head_dim = out.cols / n_head;
    for (std::int64_t r = 0; r < out.rows; ++r) {
      const auto of_row = numbers.subspan(
          static_cast<std::size_t>(first[static_cast<std::size_t>(r)]),
          static_cast<std::size_t>(first[static_cast<std::size_t>(r) + 1] - first[static_cast<std::size_t>(r)]));
      for (std::int64_t c = 0; c < out.cols; ++c) {
        const std::int64_t scalars = out.cols + 2 * (c / head_dim);
        double largest = -std::numeric_limits<double>::infinity();
        for (const std::int32_t part : of_row) largest = std::max(largest, double{parts.f32(part)[scalars]});
        double value = 0.0, sum = 0.0;
        for (const std::int32_t part : of_row) {
          const double factor = std::exp(double{parts.f32(part)[scalars]} - largest);
          value += factor * double{parts.f32(part)[c]};
          sum += factor * double{parts.f32(part)[scalars + 1]};
        }
        store_element(out.row(r), out.dtype, c, static_cast<float>(value / sum));
      }
    }
  }

  void copy_page(const KvPages& kv, std::int32_t from, std::int32_t to) override {
    check_copy_page(kv, from, to);
    const std::int64_t bytes = kv_page_bytes(kv.n_head, kv.head_dim, kv.dtype);
    auto* base = static_cast<std::byte*>(kv.base);
    std::memcpy(base + to * bytes, base + from * bytes, static_cast<std::size_t>(bytes));
  }

  void layer_norm(Tensor x, Tensor gain, Tensor bias, float epsilon, Tensor out) override {
    check_layer_norm(x, gain, bias, out);
    for (std::int64_t r = 0; r < x.rows; ++r) {
      double sum = 0.0;
      for (std::int64_t c = 0; c < x.cols; ++c) sum += double{x.f32(r)[c]};
      const double mean = sum / static_cast<double>(x.cols);
      double squares = 0.0;
      for (std::int64_t c = 0; c < x.cols; ++c) squares += (double{x.f32(r)[c]} - mean) * (double{x.f32(r)[c]} - mean);
      const double inverse = 1.0 / std::sqrt(squares / static_cast<double>(x.cols) + double{epsilon});
      for (std::int64_t c = 0; c < x.cols; ++c) {
        const double normal = (double{x.f32(r)[c]} - mean) * inverse;
        const double value = normal * double{gain.f32(0)[c]} + double{bias.f32(0)[c]};
        store_element(out.row(r), out.dtype, c, static_cast<float>(value));
      }
    }
  }

  void linear(Tensor x, const Matrix& w, Tensor bias, Epilogue epilogue, Tensor out) override {
    check_linear(x, w, bias, epilogue, out);
    std::vector<double> sums(static_cast<std::size_t>(w.out));
    for (std::int64_t r = 0; r < x.rows; ++r) {
      for (std::int64_t n = 0; n < w.out; ++n) {
        sums[static_cast<std::size_t>(n)] = bias.data == nullptr ? 0.0 : double{load_element(bias.data, bias.dtype, n)};
      }
      for (std::int64_t k = 0; k < w.in; ++k) {
        const double factor = load_element(x.row(r), x.dtype, k);
        for (std::int64_t n = 0; n < w.out; ++n) {
          sums[static_cast<std::size_t>(n)] += factor * double{ReferenceMatrix::element(w, k, n)};
        }
      }
      for (std::int64_t n = 0; n < w.out; ++n) {
        const double value = activate(epilogue.activation, sums[static_cast<std::size_t>(n)]);
        const double before = epilogue.add_to_output ? double{out.f32(r)[n]} : 0.0;
        store_element(out.row(r), out.dtype, n, static_cast<float>(before + value));
      }
    }
  }

  void gather(Tensor x, std::span<const std::int32_t> rows, Tensor out) override {
    check_gather(x, rows, out);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      for (std::int64_t c = 0; c < x.cols; ++c) out.f32(static_cast<std::int64_t>(i))[c] = x.f32(rows[i])[c];
    }
  }

  void summarize_logits(Tensor logits, std::span<const LogitsQuery> queries, void* out) override {
    check_summarize_logits(logits, queries, out);
    summarize_on_host(logits, queries, out);
  }

  void synchronize() override {}

 private:
  static void load_int8_panels(Matrix& matrix, const PackedMatrix& packed) {
    auto* values = static_cast<std::int8_t*>(matrix.storage.data());
    for (std::int64_t k = 0; k < matrix.in; ++k) {
      for (std::int64_t n = 0; n < matrix.out; ++n) {
        const std::byte* group =
            packed.data + Int8Layout{matrix.in, matrix.out}.group_begin(n / kPanel, k / kInt8Group);
        const auto* group_values = reinterpret_cast<const std::int8_t*>(group + Int8Layout::kScaleBytes);
        values[k * matrix.out + n] = group_values[Int8Layout::value_index(k % kInt8Group, n % kPanel)];
        ReferenceMatrix::scales(matrix)[k / kInt8Group * matrix.out + n] =
            load_element(group, DType::kFloat32, n % kPanel);
      }
    }
  }

  static void load_int8_rows(Matrix& matrix, WeightLayout layout, std::int64_t first_row, Tensor host) {
    const bool in_out = layout == WeightLayout::kInOut;
    const std::int64_t first_k = in_out ? first_row : 0;
    const std::int64_t first_n = in_out ? 0 : first_row;
    const std::int64_t k_count = in_out ? host.rows : host.cols;
    const std::int64_t n_count = in_out ? host.cols : host.rows;
    const auto weight = [&](std::int64_t k, std::int64_t n) {
      return in_out ? load_element(host.row(k), host.dtype, n) : load_element(host.row(n), host.dtype, k);
    };
    auto* values = static_cast<std::int8_t*>(matrix.storage.data());
    for (std::int64_t begin = 0; begin < k_count; begin += kInt8Group) {
      const std::int64_t end = std::min(begin + kInt8Group, k_count);
      for (std::int64_t n = 0; n < n_count; ++n) {
        float largest = 0.0F;
        for (std::int64_t k = begin; k < end; ++k) largest = std::max(largest, std::abs(weight(k, n)));
        ReferenceMatrix::scales(matrix)[(first_k + begin) / kInt8Group * matrix.out + first_n + n] =
            int8_scale(largest);
        for (std::int64_t k = begin; k < end; ++k) {
          values[(first_k + k) * matrix.out + first_n + n] = int8_value(weight(k, n), int8_inverse(largest));
        }
      }
    }
  }

  // Element 0 of K (which = 0) or V (which = 1) of head `h` at `position` of the sequence of row `r`, as an
  // index.
  std::int64_t kv_index(const KvPages& kv, std::int64_t r, std::int32_t position, std::int64_t which,
                        std::int32_t h) const {
    const std::int64_t slot = std::int64_t{rows_.page_of(r, position)} * kPagePositions + position % kPagePositions;
    return ((slot * 2 + which) * kv.n_head + h) * kv.head_dim;
  }

  void append_rows(Tensor qkv, const KvPages& kv) {
    const std::int64_t width = std::int64_t{kv.n_head} * kv.head_dim;
    for (std::int64_t r = 0; r < qkv.rows; ++r) {
      const std::int32_t position = rows_.positions()[static_cast<std::size_t>(r)];
      if (rows_.page_of(r, position) == kElsewhere) continue;
      for (std::int64_t which = 0; which < 2; ++which) {
        for (std::int64_t c = 0; c < width; ++c) {
          store_element(kv.base, kv.dtype, kv_index(kv, r, position, which, 0) + c,
                        load_element(qkv.row(r), qkv.dtype, (1 + which) * width + c));
        }
      }
    }
  }

  struct Softmax {
    double largest = -std::numeric_limits<double>::infinity();
    double sum = 0.0;
    std::vector<double> out;
  };

  // Over positions from `begin` to before `end`.
  Softmax attend(Tensor qkv, const KvPages& kv, float scale, std::int64_t r, std::int32_t h, std::int32_t begin,
                 std::int32_t end) const {
    const std::int64_t first = std::int64_t{h} * kv.head_dim;
    std::vector<double> weights;
    Softmax sums;
    for (std::int32_t p = begin; p < end; ++p) {
      double score = 0.0;
      for (std::int32_t d = 0; d < kv.head_dim; ++d) {
        score += double{load_element(qkv.row(r), qkv.dtype, first + d)} *
                 double{load_element(kv.base, kv.dtype, kv_index(kv, r, p, 0, h) + d)};
      }
      weights.push_back(score * double{scale});
      sums.largest = std::max(sums.largest, weights.back());
    }
    for (double& weight : weights) sums.sum += weight = std::exp(weight - sums.largest);
    for (std::int32_t d = 0; d < kv.head_dim; ++d) {
      double value = 0.0;
      for (std::int32_t p = begin; p < end; ++p) {
        value += weights[static_cast<std::size_t>(p - begin)] *
                 double{load_element(kv.base, kv.dtype, kv_index(kv, r, p, 1, h) + d)};
      }
      sums.out.push_back(value);
    }
    return sums;
  }

  ReferenceLayout layout_;
  HostMemory memory_;
  RowSet rows_;
};

}  // namespace

std::unique_ptr<MemoryLayout> reference_layout() {
  return std::make_unique<ReferenceLayout>();
}

std::unique_ptr<Backend> make_reference_backend() {
  return std::make_unique<ReferenceBackend>();
}

}  // namespace stagecoach
