// Runs every operation on a backend and on the reference with the same inputs and compares.
//
// The reference keeps its own copy of each matrix (known by the address of its storage) and of each block's
// KV pages (by their base). What is written to pages by other means than attention and append is not seen by the copy.
// It works in float32 throughout: activations of 16 bits are widened.
// Tolerances bound the rounding of float32 arithmetic in any order of additions: some multiple of the unit
// roundoff times the sum of the absolute terms, growing with the square root of their number. 16-bit results may be off
// by their own rounding as well, and attention on 16-bit activations may round queries and probabilities.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <stdexcept>
#include <vector>

#include "kernels/backend.hpp"
#include "kernels/checks.hpp"
#include "kernels/compare_attention.hpp"
#include "kernels/comparison.hpp"
#include "kernels/convert.hpp"
#include "kernels/forwarding_backend.hpp"
#include "kernels/reference/reference_matrix.hpp"
#include "kernels/row_set.hpp"

namespace stagecoach {
namespace {

// A host copy of a tensor of the inner backend, in float32.
struct HostCopy {
  std::vector<std::byte> bytes;
  Tensor view;
};

HostCopy copy_of(Backend& backend, Tensor t) {
  HostCopy copy{std::vector<std::byte>(static_cast<std::size_t>(t.rows * t.cols * 4)), {}};
  copy.view = make_tensor(t.data == nullptr ? nullptr : copy.bytes.data(), DType::kFloat32, t.rows, t.cols);
  std::vector<std::byte> row(static_cast<std::size_t>(t.cols * size_of(t.dtype)));
  for (std::int64_t r = 0; r < t.rows && t.data != nullptr; ++r) {
    backend.download(row.data(), t.row(r), static_cast<std::int64_t>(row.size()));
    convert_elements(row.data(), t.dtype, copy.view.row(r), DType::kFloat32, t.cols);
  }
  return copy;
}

struct PagesShadow {
  Buffer pages;
  KvPages shape;
  KvBounds bounds;
};

class CheckingBackend final : public ForwardingBackend {
 public:
  explicit CheckingBackend(std::unique_ptr<Backend> inner)
      : ForwardingBackend(std::move(inner)), reference_(make_reference_backend()) {}

  std::string name() const override { return "checking " + inner().name(); }

  void load_rows(Matrix& matrix, WeightLayout layout, std::int64_t first_row, Tensor host) override {
    inner().load_rows(matrix, layout, first_row, host);
    reference_->load_rows(shadow(matrix), layout, first_row, host);
  }

  void load_panels(Matrix& matrix, DType stored, const PanelReader& read) override {
    const PackedLayout layout{matrix.in, matrix.out, stored};
    std::vector<std::byte> copy(static_cast<std::size_t>(layout.bytes()));
    const auto place = [&](std::int64_t panel) { return copy.data() + panel * layout.panel_bytes(); };
    inner().load_panels(matrix, stored, [&](std::int64_t first, std::int64_t count, std::byte* panels) {
      read(first, count, panels);
      std::memcpy(place(first), panels, static_cast<std::size_t>(count * layout.panel_bytes()));
    });
    reference_->load_panels(shadow(matrix), stored, [&](std::int64_t first, std::int64_t count, std::byte* panels) {
      std::memcpy(panels, place(first), static_cast<std::size_t>(count * layout.panel_bytes()));
    });
  }

  void set_rows(const RowsView& rows) override {
    rows_.assign(rows);
    inner().set_rows(rows);
    reference_->set_rows(rows);
  }

  void embed(const Matrix& wte, Tensor wpe, Tensor out) override {
    inner().embed(wte, wpe, out);
    HostCopy got = copy_of(inner(), out);
    HostCopy want = got;
    want.view.data = want.bytes.data();
    HostCopy positions = copy_of(inner(), wpe);
    reference_->embed(shadow(wte), positions.view, want.view);
    Comparison comparison("embed");
    for (std::int64_t r = 0; r < out.rows; ++r) {
      for (std::int64_t c = 0; c < out.cols; ++c) {
        const float w = want.view.f32(r)[c];
        comparison.add(r, c, got.view.f32(r)[c], w, kRoundoff * double{std::abs(w)});
      }
    }
    comparison.finish();
  }

  void attention(Tensor qkv, const KvPages& kv, float scale, Tensor out) override {
    check_attention(rows_, qkv, kv, out);
    HostCopy in = copy_of(inner(), qkv);
    inner().attention(qkv, kv, scale, out);
    HostCopy got = copy_of(inner(), out);
    HostCopy want = got;
    want.view.data = want.bytes.data();
    PagesShadow& pages = shadow(kv);
    reference_->attention(in.view, pages.shape, scale, want.view);
    pages.bounds.add(in.view, kv);
    compare_attention(pages.bounds, kv, in.view, qkv.dtype, scale, got.view, want.view);
  }

  void append(Tensor qkv, const KvPages& kv) override {
    check_append(rows_, qkv, kv);
    inner().append(qkv, kv);
    const HostCopy in = copy_of(inner(), qkv);
    PagesShadow& pages = shadow(kv);
    reference_->append(in.view, pages.shape);
    pages.bounds.add(in.view, kv);
  }

  void attention_parts(Tensor qkv, const KvPages& kv, float scale, std::int64_t first_row, std::int64_t rows,
                       Tensor parts) override {
    check_attention_parts(rows_, qkv, kv, first_row, rows, parts);
    inner().attention_parts(qkv, kv, scale, first_row, rows, parts);
    const HostCopy in = copy_of(inner(), qkv);
    const HostCopy got = copy_of(inner(), parts);
    HostCopy want = got;
    want.view.data = want.bytes.data();
    const PagesShadow& pages = shadow(kv);
    reference_->attention_parts(in.view, pages.shape, scale, first_row, rows, want.view);
    std::vector<std::int64_t> of_part;
    for (std::int64_t r = first_row; r < first_row + rows; ++r) {
      of_part.insert(of_part.end(), static_cast<std::size_t>(rows_.parts(r)), r);
    }
    compare_parts(pages.bounds, kv, in.view, qkv.dtype, scale, of_part, got.view, want.view);
  }

  void merge_parts(Tensor parts, std::int32_t n_head, std::span<const std::int32_t> first,
                   std::span<const std::int32_t> numbers, Tensor out) override {
    check_merge_parts(parts, n_head, first, numbers, out);
    inner().merge_parts(parts, n_head, first, numbers, out);
    const HostCopy in = copy_of(inner(), parts);
    const HostCopy got = copy_of(inner(), out);
    HostCopy want = got;
    want.view.data = want.bytes.data();
    reference_->merge_parts(in.view, n_head, first, numbers, want.view);
    compare_merged(in.view, n_head, first, numbers, out.dtype, got.view, want.view);
  }

  void copy_page(const KvPages& kv, std::int32_t from, std::int32_t to) override {
    check_copy_page(kv, from, to);
    inner().copy_page(kv, from, to);
    reference_->copy_page(shadow(kv).shape, from, to);
  }

  void layer_norm(Tensor x, Tensor gain, Tensor bias, float epsilon, Tensor out) override {
    check_layer_norm(x, gain, bias, out);
    HostCopy in = copy_of(inner(), x);
    HostCopy g = copy_of(inner(), gain);
    HostCopy b = copy_of(inner(), bias);
    inner().layer_norm(x, gain, bias, epsilon, out);
    HostCopy got = copy_of(inner(), out);
    HostCopy want = got;
    want.view.data = want.bytes.data();
    reference_->layer_norm(in.view, g.view, b.view, epsilon, want.view);
    compare_layer_norm(in.view, g.view, b.view, epsilon, out.dtype, got.view, want.view);
  }

  void linear(Tensor x, const Matrix& w, Tensor bias, Epilogue epilogue, Tensor out) override {
    check_linear(x, w, bias, epilogue, out);
    HostCopy in = copy_of(inner(), x);
    HostCopy b = copy_of(inner(), bias);
    HostCopy want = copy_of(inner(), out);
    const HostCopy before = want;
    want.view.data = want.bytes.data();
    inner().linear(x, w, bias, epilogue, out);
    HostCopy got = copy_of(inner(), out);
    const Matrix& weights = shadow(w);
    reference_->linear(in.view, weights, b.view, epilogue, want.view);
    const std::string operation = fmt::format("linear ({}, {}) {}", w.in, w.out, name_of(w.dtype));
    compare_linear(operation, in.view, weights, b.view, epilogue, before, out.dtype, got.view, want.view);
  }

  void gather(Tensor x, std::span<const std::int32_t> rows, Tensor out) override {
    check_gather(x, rows, out);
    HostCopy in = copy_of(inner(), x);
    inner().gather(x, rows, out);
    HostCopy got = copy_of(inner(), out);
    Comparison comparison("gather");
    for (std::int64_t i = 0; i < out.rows; ++i) {
      for (std::int64_t c = 0; c < out.cols; ++c) {
        comparison.add(i, c, got.view.f32(i)[c], in.view.f32(rows[static_cast<std::size_t>(i)])[c], 0.0);
      }
    }
    comparison.finish();
  }

  void summarize_logits(Tensor logits, std::span<const LogitsQuery> queries, void* out) override {
    inner().summarize_logits(logits, queries, out);
    const HostCopy in = copy_of(inner(), logits);
    const auto bytes = static_cast<std::size_t>(summary_bytes(queries));
    std::vector<std::byte> got(bytes), want(bytes);
    inner().download(got.data(), out, static_cast<std::int64_t>(bytes));
    reference_->summarize_logits(in.view, queries, want.data());
    compare_summaries(queries, logits.cols, got.data(), want.data());
  }

 private:
  Matrix& shadow(const Matrix& matrix) {
    Matrix& copy = matrices_[matrix.storage.data()];
    if (copy.in != matrix.in || copy.out != matrix.out || copy.dtype != matrix.dtype) {
      copy = reference_->make_matrix(matrix.in, matrix.out, matrix.dtype);
    }
    return copy;
  }

  PagesShadow& shadow(const KvPages& kv) {
    PagesShadow& copy = pages_[kv.base];
    const KvPages& shape = copy.shape;
    if (shape.dtype != kv.dtype || shape.page_count != kv.page_count || shape.n_head != kv.n_head ||
        shape.head_dim != kv.head_dim) {
      copy = {};
      copy.pages = reference_->allocate(kv.page_count * reference_->kv_page_bytes(kv.n_head, kv.head_dim, kv.dtype));
      copy.shape = kv;
      copy.shape.base = copy.pages.data();
    }
    return copy;
  }

  static void compare_layer_norm(Tensor x, Tensor gain, Tensor bias, float epsilon, DType dtype, Tensor got,
                                 Tensor want) {
    Comparison comparison("layer_norm");
    for (std::int64_t r = 0; r < x.rows; ++r) {
      double sum = 0.0;
      double squares = 0.0;
      double largest = 0.0;
      for (std::int64_t c = 0; c < x.cols; ++c) {
        sum += double{x.f32(r)[c]};
        largest = std::max(largest, double{std::abs(x.f32(r)[c])});
      }
      const double mean = sum / static_cast<double>(x.cols);
      for (std::int64_t c = 0; c < x.cols; ++c) squares += std::pow(double{x.f32(r)[c]} - mean, 2);
      const double inverse = 1.0 / std::sqrt(squares / static_cast<double>(x.cols) + double{epsilon});
      for (std::int64_t c = 0; c < x.cols; ++c) {
        // Rounding of the mean and of x - mean shifts every centred value, and through the variance scales
        // it.
        const double normal = std::abs(double{x.f32(r)[c]} - mean) * inverse;
        const double error = (1.0 + normal) * (1.0 + largest * inverse) * double{std::abs(gain.f32(0)[c])};
        comparison.add(r, c, got.f32(r)[c], want.f32(r)[c],
                       roundoff_of_sum(x.cols / 16) * (error + double{std::abs(bias.f32(0)[c])}) +
                           rounding_of(dtype, want.f32(r)[c]));
      }
    }
    comparison.finish();
  }

  // The distance of two neighbours when row `r` of x is rounded to 16 bits in the int8 group that begins at k.
  static double int16_step(Tensor x, std::int64_t r, std::int64_t k) {
    double largest = 0.0;
    for (std::int64_t i = k; i < std::min(k + kInt8Group, x.cols); ++i) {
      largest = std::max(largest, double{std::abs(x.f32(r)[i])});
    }
    return largest / 32767.0;
  }

  static void compare_linear(const std::string& operation, Tensor x, const Matrix& w, Tensor bias, Epilogue epilogue,
                             const HostCopy& before, DType dtype, Tensor got, Tensor want) {
    Comparison comparison(operation);
    std::vector<double> terms(static_cast<std::size_t>(w.out));
    std::vector<double> rounded(
        static_cast<std::size_t>(w.out));  // by how much rounding x to 16 bits may change the sum
    for (std::int64_t r = 0; r < x.rows; ++r) {
      for (std::int64_t n = 0; n < w.out; ++n) {
        terms[static_cast<std::size_t>(n)] = bias.data == nullptr ? 0.0 : double{std::abs(bias.f32(0)[n])};
      }
      std::ranges::fill(rounded, 0.0);
      double step = 0.0;
      for (std::int64_t k = 0; k < w.in; ++k) {
        if (w.dtype == DType::kInt8 && k % kInt8Group == 0) step = int16_step(x, r, k);
        const double factor = std::abs(x.f32(r)[k]);
        for (std::int64_t n = 0; n < w.out; ++n) {
          const double weight = std::abs(double{ReferenceMatrix::element(w, k, n)});
          terms[static_cast<std::size_t>(n)] += factor * weight;
          rounded[static_cast<std::size_t>(n)] += 0.51 * step * weight;
        }
      }
      const auto* old = reinterpret_cast<const float*>(before.bytes.data()) + r * w.out;
      for (std::int64_t n = 0; n < w.out; ++n) {
        // Activations change no faster than 1.13 times their argument, and are good to some units of it.
        const double magnitude = terms[static_cast<std::size_t>(n)];
        double tolerance = 1.2 * roundoff_of_sum(w.in) * magnitude + 2.0 * rounding_of(dtype, want.f32(r)[n]) +
                           1.2 * rounded[static_cast<std::size_t>(n)];
        if (epilogue.activation != Activation::kNone) tolerance += 8.0 * kRoundoff * magnitude;
        if (epilogue.add_to_output) tolerance += 2.0 * kRoundoff * double{std::abs(old[n])};
        comparison.add(r, n, got.f32(r)[n], want.f32(r)[n], tolerance);
      }
    }
    comparison.finish();
  }

  // Sums of exponentials: each is off by some units and by the rounding of its argument. All else is exact.
  static void compare_summaries(std::span<const LogitsQuery> queries, std::int64_t cols, const std::byte* got,
                                const std::byte* want) {
    Comparison comparison("summarize_logits");
    for (std::size_t i = 0; i < queries.size(); ++i) {
      const auto r = static_cast<std::int64_t>(i);
      const LogitsSummary g = read_summary(got, queries[i]);
      const LogitsSummary w = read_summary(want, queries[i]);
      comparison.add(r, 0, static_cast<float>(g.totals->has_nan), static_cast<float>(w.totals->has_nan), 0.0);
      if (w.totals->has_nan != 0) continue;
      comparison.add(r, 1, g.totals->largest, w.totals->largest, 0.0);
      if (std::isfinite(w.totals->largest)) {
        const double sum = w.totals->sum;
        comparison.add(r, 2, g.totals->sum, w.totals->sum, (roundoff_of_sum(cols) + 8.0 * kRoundoff) * sum);
      }
      comparison.add(r, 3, g.totals->wanted, w.totals->wanted, 0.0);
      for (std::size_t t = 0; t < w.top.size(); ++t) {
        const auto c = static_cast<std::int64_t>(4 + 3 * t);
        comparison.add(r, c, static_cast<float>(g.top[t].token), static_cast<float>(w.top[t].token), 0.0);
        comparison.add(r, c + 1, g.top[t].logit, w.top[t].logit, 0.0);
        comparison.add(r, c + 2, g.top[t].penalised, w.top[t].penalised, 0.0);
      }
    }
    comparison.finish();
  }

  std::unique_ptr<Backend> reference_;  // before its buffers below
  std::map<const void*, Matrix> matrices_;
  std::map<const void*, PagesShadow> pages_;
  RowSet rows_;
};

}  // namespace

std::unique_ptr<Backend> make_checking_backend(std::unique_ptr<Backend> inner) {
  return std::make_unique<CheckingBackend>(std::move(inner));
}

}  // namespace stagecoach
