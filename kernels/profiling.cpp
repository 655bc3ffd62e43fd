#include "kernels/profiling.hpp"

#include <algorithm>
#include <limits>
#include <utility>

namespace stagecoach {
namespace {

double seconds(std::chrono::steady_clock::duration time) {
  return std::chrono::duration<double>(time).count();
}

}  // namespace

double PhaseProfile::operations_s() const {
  double sum = 0.0;
  for (const OperationTotals& totals : operations) sum += totals.seconds;
  return sum;
}

ProfilingBackend::ProfilingBackend(std::unique_ptr<Backend> inner, std::int64_t skip_rows)
    : ForwardingBackend(std::move(inner)), rows_to_skip_(skip_rows) {}

std::string ProfilingBackend::name() const {
  return "profiling " + inner().name();
}

void ProfilingBackend::add(const OperationKind& kind, const Cost& cost, Clock::time_point start,
                           Clock::time_point end) {
  PhaseProfile& phase = profile_[phase_];
  if (last_end_) {
    // Pages are copied before the rows are set.
    const bool inside = kind.operation != Operation::kSetRows && kind.operation != Operation::kCopyPage;
    (inside ? phase.between_operations_s : phase.before_microbatches_s) += seconds(start - *last_end_);
  }
  last_end_ = end;
  auto totals = std::ranges::find(phase.operations, kind, &OperationTotals::kind);
  if (totals == phase.operations.end()) {
    phase.operations.push_back({.kind = kind});
    totals = phase.operations.end() - 1;
  }
  ++totals->calls;
  totals->seconds += seconds(end - start);
  totals->rows += cost.rows;
  totals->bytes_read += cost.bytes_read;
  totals->flops += cost.flops;
}

void ProfilingBackend::set_counting(bool counting) {
  counting_ = false;
  last_end_.reset();
  rows_to_skip_ = counting ? 0 : std::numeric_limits<std::int64_t>::max();
}

template <typename Body>
void ProfilingBackend::timed(const OperationKind& kind, const Cost& cost, const Body& body) {
  if (!counting_) return body();
  const Clock::time_point start = Clock::now();
  body();
  inner().synchronize();
  add(kind, cost, start, Clock::now());
}

void ProfilingBackend::look_at(const RowsView& rows) {
  rows_.assign(rows);
  const auto last = std::ranges::max_element(rows.sequences);
  by_sequence_.assign(last == rows.sequences.end() ? 0 : static_cast<std::size_t>(*last) + 1, 0);
  positions_attended_ = 0;
  phase_ = Phase::kDecode;
  for (std::size_t r = 0; r < rows.positions.size(); ++r) {
    std::int64_t& seen = by_sequence_[static_cast<std::size_t>(rows.sequences[r])];
    if (seen > 0) phase_ = Phase::kPrefill;
    seen = std::max<std::int64_t>(seen, rows.positions[r] + 1LL);
    positions_attended_ += rows.positions[r] + 1LL;
  }
  positions_kept_ = 0;
  for (const std::int64_t seen : by_sequence_) positions_kept_ += seen;
}

void ProfilingBackend::set_rows(const RowsView& rows) {
  const auto count = static_cast<std::int64_t>(rows.positions.size());
  if (rows_to_skip_ > 0) {
    inner().set_rows(rows);
    rows_to_skip_ -= count;
    return;
  }
  if (!counting_) inner().synchronize();  // what was not counted ends here
  counting_ = true;
  const Clock::time_point start = Clock::now();
  inner().set_rows(rows);
  inner().synchronize();
  const Clock::time_point end = Clock::now();
  look_at(rows);  // now that the inner backend has found them in order
  ++profile_[phase_].microbatches;
  profile_[phase_].rows += count;
  const auto bytes = static_cast<std::int64_t>(rows.tokens.size_bytes() + rows.positions.size_bytes() +
                                               rows.sequences.size_bytes() + rows.pages.size_bytes());
  add({Operation::kSetRows}, {count, bytes, 0}, start, end);
}

void ProfilingBackend::download(void* host, const void* device, std::int64_t bytes) {
  timed({Operation::kDownload}, {0, bytes, 0}, [&] { inner().download(host, device, bytes); });
}

Backend::Copy ProfilingBackend::start_download(void* host, const void* device, std::int64_t bytes) {
  Copy copy = 0;
  timed({Operation::kDownload}, {0, bytes, 0}, [&] { copy = inner().start_download(host, device, bytes); });
  return copy;
}

void ProfilingBackend::embed(const Matrix& wte, Tensor wpe, Tensor out) {
  const std::int64_t row_bytes = out.cols * (size_of(wte.dtype) + size_of(wpe.dtype));
  timed({Operation::kEmbed}, {out.rows, out.rows * row_bytes, 0}, [&] { inner().embed(wte, wpe, out); });
}

void ProfilingBackend::attention(Tensor qkv, const KvPages& kv, float scale, Tensor out) {
  const std::int64_t width = std::int64_t{kv.n_head} * kv.head_dim;
  const Cost cost{out.rows, positions_kept_ * 2 * width * size_of(kv.dtype), positions_attended_ * 4 * width};
  timed({Operation::kAttention}, cost, [&] { inner().attention(qkv, kv, scale, out); });
}

// As of attention, for the keys that are here.
ProfilingBackend::Cost ProfilingBackend::cost_of_parts(const KvPages& kv, std::int64_t first_row, std::int64_t rows) {
  const std::int64_t width = std::int64_t{kv.n_head} * kv.head_dim;
  Cost cost{.rows = rows};
  std::ranges::fill(by_sequence_, 0);
  std::int64_t kept = 0;
  for (std::int64_t r = first_row; r < first_row + rows; ++r) {
    const std::int32_t sequence = rows_.sequences()[static_cast<std::size_t>(r)];
    const std::int64_t seen = rows_.positions()[static_cast<std::size_t>(r)] + 1LL;
    std::int64_t here = 0;
    for (const std::int32_t segment : rows_.segments(sequence)) {
      here += std::clamp<std::int64_t>(seen - std::int64_t{segment} * kSegmentPositions, 0, kSegmentPositions);
    }
    cost.flops += here * 4 * width;
    std::int64_t& before = by_sequence_[static_cast<std::size_t>(sequence)];
    kept += here - std::exchange(before, here);  // the positions of a sequence grow
  }
  cost.bytes_read = kept * 2 * width * size_of(kv.dtype);
  return cost;
}

void ProfilingBackend::append(Tensor qkv, const KvPages& kv) {
  const std::int64_t bytes = qkv.bytes() / 3 * 2;
  timed({Operation::kAttention}, {0, bytes, 0}, [&] { inner().append(qkv, kv); });
}

void ProfilingBackend::attention_parts(Tensor qkv, const KvPages& kv, float scale, std::int64_t first_row,
                                       std::int64_t rows, Tensor parts) {
  const auto run = [&] { inner().attention_parts(qkv, kv, scale, first_row, rows, parts); };
  if (!counting_) return run();
  const bool real = first_row >= 0 && rows >= 0 && first_row + rows <= rows_.rows();  // otherwise it will be refused
  timed({Operation::kAttention}, real ? cost_of_parts(kv, first_row, rows) : Cost{}, run);
}

void ProfilingBackend::merge_parts(Tensor parts, std::int32_t n_head, std::span<const std::int32_t> first,
                                   std::span<const std::int32_t> numbers, Tensor out) {
  const std::int64_t bytes = static_cast<std::int64_t>(numbers.size()) * parts.cols * size_of(parts.dtype);
  timed({Operation::kAttention}, {0, bytes, 0}, [&] { inner().merge_parts(parts, n_head, first, numbers, out); });
}

void ProfilingBackend::copy_page(const KvPages& kv, std::int32_t from, std::int32_t to) {
  const std::int64_t bytes = kv_page_bytes(kv.n_head, kv.head_dim, kv.dtype);
  timed({Operation::kCopyPage}, {0, bytes, 0}, [&] { inner().copy_page(kv, from, to); });
}

void ProfilingBackend::layer_norm(Tensor x, Tensor gain, Tensor bias, float epsilon, Tensor out) {
  timed({Operation::kLayerNorm}, {x.rows, x.bytes() + gain.bytes() + bias.bytes(), 0},
        [&] { inner().layer_norm(x, gain, bias, epsilon, out); });
}

void ProfilingBackend::linear(Tensor x, const Matrix& w, Tensor bias, Epilogue epilogue, Tensor out) {
  const Cost cost{x.rows, matrix_bytes(w.in, w.out, w.dtype), 2 * x.rows * w.in * w.out};
  timed({Operation::kLinear, w.in, w.out, epilogue.activation}, cost,
        [&] { inner().linear(x, w, bias, epilogue, out); });
}

void ProfilingBackend::gather(Tensor x, std::span<const std::int32_t> rows, Tensor out) {
  timed({Operation::kGather}, {out.rows, out.bytes(), 0}, [&] { inner().gather(x, rows, out); });
}

void ProfilingBackend::summarize_logits(Tensor logits, std::span<const LogitsQuery> queries, void* out) {
  timed({Operation::kSummarizeLogits}, {logits.rows, logits.bytes(), 0},
        [&] { inner().summarize_logits(logits, queries, out); });
}

}  // namespace stagecoach
