#include "kernels/checks.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

namespace stagecoach {
namespace {

std::string describe(Tensor t) {
  return fmt::format("{} ({}, {}) stride {}", name_of(t.dtype), t.rows, t.cols, t.stride);
}

void require(bool ok, const char* operation, const std::string& what) {
  if (!ok) throw std::invalid_argument(fmt::format("{}: {}", operation, what));
}

bool is_view(Tensor t) {
  return t.rows >= 0 && t.cols >= 0 && (t.stride >= t.cols || t.rows <= 1) &&
         (t.data != nullptr || t.rows == 0 || t.cols == 0);
}

void require_tensor(Tensor t, DType dtype, std::int64_t rows, std::int64_t cols, const char* operation,
                    const char* name) {
  if (is_view(t) && t.dtype == dtype && t.rows == rows && t.cols == cols) return;
  require(false, operation,
          fmt::format("{} is {}, expected {} ({}, {})", name, describe(t), name_of(dtype), rows, cols));
}

void require_float32(Tensor t, std::int64_t rows, std::int64_t cols, const char* operation, const char* name) {
  require_tensor(t, DType::kFloat32, rows, cols, operation, name);
}

// Of any dtype that an activation may have.
void require_activation(Tensor t, std::int64_t rows, std::int64_t cols, const char* operation, const char* name) {
  require_tensor(t, t.dtype == DType::kInt8 ? DType::kFloat32 : t.dtype, rows, cols, operation, name);
}

void require_matrix(const Matrix& m, const char* operation) {
  if (m.in >= 1 && m.out >= 1 && m.storage) return;
  require(false, operation, fmt::format("matrix ({}, {}) has {} bytes", m.in, m.out, m.storage.bytes()));
}

}  // namespace

void check_matrix_shape(std::int64_t in, std::int64_t out) {
  if (in < 1 || out < 1) require(false, "matrix_bytes", fmt::format("shape ({}, {})", in, out));
}

void check_load_rows(const Matrix& matrix, WeightLayout layout, std::int64_t first_row, Tensor host) {
  require_matrix(matrix, "load_rows");
  const bool in_out = layout == WeightLayout::kInOut;
  const std::int64_t rows = in_out ? matrix.in : matrix.out;
  const std::int64_t cols = in_out ? matrix.out : matrix.in;
  const bool inside = is_view(host) && host.dtype != DType::kInt8 && host.cols == cols && first_row >= 0 &&
                      first_row <= rows && host.rows <= rows - first_row;
  require(inside, "load_rows",
          fmt::format("host array {} at row {} of a ({}, {}) array", describe(host), first_row, rows, cols));
  if (matrix.dtype != DType::kInt8 || !in_out) return;
  const std::int64_t end = first_row + host.rows;
  require(first_row % kInt8Group == 0 && (end % kInt8Group == 0 || end == rows), "load_rows",
          fmt::format("rows [{}, {}) of {} cut a group of {} int8 rows", first_row, end, rows, kInt8Group));
}

void check_load_panels(const Matrix& matrix, DType stored) {
  require_matrix(matrix, "load_panels");
  require(stored != DType::kInt8 || matrix.dtype == DType::kInt8, "load_panels",
          fmt::format("int8 panels for a {} matrix", name_of(matrix.dtype)));
}

void check_embed(const RowSet& rows, const Matrix& wte, Tensor wpe, Tensor out) {
  require_matrix(wte, "embed");
  require(static_cast<std::int64_t>(rows.tokens().size()) == rows.rows(), "embed", "set_rows gave no tokens");
  require(is_view(wpe) && wpe.cols == wte.in, "embed",
          fmt::format("wpe is {}, expected {} columns", describe(wpe), wte.in));
  require_float32(out, rows.rows(), wte.in, "embed", "out");
  for (std::size_t r = 0; r < rows.tokens().size(); ++r) {
    const std::int32_t token = rows.tokens()[r];
    const std::int32_t position = rows.positions()[r];
    if (token >= 0 && token < wte.out && position < wpe.rows) continue;
    require(false, "embed",
            fmt::format("row {} has token {} of {} and position {} of {}", r, token, wte.out, position, wpe.rows));
  }
}

namespace {

void require_pages(const KvPages& kv, const char* operation) {
  require(kv.n_head >= 1 && kv.head_dim >= 1 && kv.base != nullptr, operation,
          fmt::format("{} heads of {}, pages {}", kv.n_head, kv.head_dim, kv.base == nullptr ? "missing" : "given"));
}

// qkv of all rows, whose pages are from `least` on.
void require_rows(const RowSet& rows, Tensor qkv, const KvPages& kv, std::int32_t least, const char* operation) {
  require_pages(kv, operation);
  require_activation(qkv, rows.rows(), 3 * std::int64_t{kv.n_head} * kv.head_dim, operation, "qkv");
  if (rows.first_page() >= least && rows.last_page() < kv.page_count) return;
  require(false, operation,
          fmt::format("rows use pages {} to {} of {}", rows.first_page(), rows.last_page(), kv.page_count));
}

}  // namespace

void check_attention(const RowSet& rows, Tensor qkv, const KvPages& kv, Tensor out) {
  require_rows(rows, qkv, kv, 0, "attention");
  require_tensor(out, qkv.dtype, rows.rows(), std::int64_t{kv.n_head} * kv.head_dim, "attention", "out");
}

void check_append(const RowSet& rows, Tensor qkv, const KvPages& kv) {
  require_rows(rows, qkv, kv, kElsewhere, "append");
}

void check_attention_parts(const RowSet& rows, Tensor qkv, const KvPages& kv, std::int64_t first_row,
                           std::int64_t count, Tensor parts) {
  require_rows(rows, qkv, kv, kElsewhere, "attention_parts");
  require(first_row >= 0 && count >= 0 && first_row + count <= rows.rows(), "attention_parts",
          fmt::format("{} rows from {} on of {}", count, first_row, rows.rows()));
  std::int64_t total = 0;
  for (std::int64_t r = first_row; r < first_row + count; ++r) total += rows.parts(r);
  require_float32(parts, total, part_width(kv.n_head, kv.head_dim), "attention_parts", "parts");
}

void check_merge_parts(Tensor parts, std::int32_t n_head, std::span<const std::int32_t> first,
                       std::span<const std::int32_t> numbers, Tensor out) {
  require(n_head >= 1 && out.cols % n_head == 0, "merge_parts", fmt::format("{} heads in {}", n_head, describe(out)));
  require_activation(out, out.rows, out.cols, "merge_parts", "out");
  require_float32(parts, parts.rows, part_width(n_head, out.cols / n_head), "merge_parts", "parts");
  require(static_cast<std::int64_t>(first.size()) == out.rows + 1 && first.front() == 0 &&
              first.back() == static_cast<std::int32_t>(numbers.size()),
          "merge_parts", fmt::format("{} ends and {} numbers for {} rows", first.size(), numbers.size(), out.rows));
  for (std::size_t r = 0; r + 1 < first.size(); ++r) {
    require(first[r] < first[r + 1], "merge_parts", fmt::format("row {} has no parts", r));
  }
  for (const std::int32_t number : numbers) {
    require(number >= 0 && number < parts.rows, "merge_parts", fmt::format("part {} of {}", number, parts.rows));
  }
}

void check_copy_page(const KvPages& kv, std::int32_t from, std::int32_t to) {
  require_pages(kv, "copy_page");
  const bool inside = from >= 0 && from < kv.page_count && to >= 0 && to < kv.page_count && from != to;
  require(inside, "copy_page", fmt::format("page {} to {} of {}", from, to, kv.page_count));
}

void check_layer_norm(Tensor x, Tensor gain, Tensor bias, Tensor out) {
  require(x.cols >= 1, "layer_norm", "no columns");
  require_float32(x, x.rows, x.cols, "layer_norm", "x");
  require_float32(gain, 1, x.cols, "layer_norm", "gain");
  require_float32(bias, 1, x.cols, "layer_norm", "bias");
  require_activation(out, x.rows, x.cols, "layer_norm", "out");
}

void check_linear(Tensor x, const Matrix& w, Tensor bias, Epilogue epilogue, Tensor out) {
  require_matrix(w, "linear");
  require_activation(x, x.rows, w.in, "linear", "x");
  require_activation(out, x.rows, w.out, "linear", "out");
  if (bias.data != nullptr) require_tensor(bias, out.dtype, 1, w.out, "linear", "bias");
  require(!epilogue.add_to_output || out.dtype == DType::kFloat32, "linear",
          fmt::format("cannot add to {}", describe(out)));
  require(!epilogue.add_to_output || epilogue.activation == Activation::kNone, "linear",
          "an epilogue has an activation or adds to the output, never both");
}

void check_gather(Tensor x, std::span<const std::int32_t> rows, Tensor out) {
  require_float32(x, x.rows, x.cols, "gather", "x");
  require_float32(out, static_cast<std::int64_t>(rows.size()), x.cols, "gather", "out");
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (rows[i] >= 0 && rows[i] < x.rows) continue;
    require(false, "gather", fmt::format("index {} asks for row {} of {}", i, rows[i], x.rows));
  }
}

void check_summarize_logits(Tensor logits, std::span<const LogitsQuery> queries, const void* out) {
  const char* const operation = "summarize_logits";
  require_float32(logits, static_cast<std::int64_t>(queries.size()), logits.cols, operation, "logits");
  require(out != nullptr || queries.empty(), operation, "no output");
  const auto is_token = [&](std::int32_t token) { return token >= 0 && token < logits.cols; };
  for (std::size_t i = 0; i < queries.size(); ++i) {
    const LogitsQuery& q = queries[i];
    require(q.top >= 0 && q.top <= kMostTopLogits && q.top <= logits.cols, operation,
            fmt::format("row {} asks for {} of {} logits, at most {}", i, q.top, logits.cols, kMostTopLogits));
    require(is_token(q.wanted), operation, fmt::format("row {} asks for token {} of {}", i, q.wanted, logits.cols));
    require(q.penalty > 0.0, operation, fmt::format("row {} has penalty {}", i, q.penalty));
    const auto stray = std::ranges::find_if_not(q.penalised, is_token);
    if (stray != q.penalised.end()) {
      require(false, operation, fmt::format("row {} penalises token {} of {}", i, *stray, logits.cols));
    }
  }
}

void check_float32(Tensor x, Tensor out, const char* operation) {
  require_float32(x, x.rows, x.cols, operation, "input");
  require_float32(out, out.rows, out.cols, operation, "output");
}

}  // namespace stagecoach
