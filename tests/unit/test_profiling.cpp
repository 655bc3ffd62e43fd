// The profiling backend: results pass through unchanged, and every operation is counted once, with its phase and cost.
#include <doctest/doctest.h>

#include <chrono>
#include <numeric>

#include "kernels/profiling.hpp"
#include "tests/unit/kernels_fixture.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

constexpr std::int64_t kWidth = 8, kInner = 12, kVocab = 10, kPositions = 80;
constexpr std::int32_t kHeads = 2;

// One block and a head over any backend.
struct TinyModel {
  TinyModel(Backend& b, std::uint64_t seed)
      : backend(b),
        random(seed),
        wte(random_matrix(b, random, kWidth, kVocab, DType::kFloat16)),
        qkv(random_matrix(b, random, kWidth, 3 * kWidth, DType::kFloat16)),
        fc(random_matrix(b, random, kWidth, kInner, DType::kFloat16)),
        out(random_matrix(b, random, kInner, kWidth, DType::kFloat16)),
        wpe(random_array(random, kPositions, kWidth)),
        gain(random_array(random, 1, kWidth)),
        pages(b.allocate(5 * b.kv_page_bytes(kHeads, kWidth / kHeads, DType::kBFloat16))) {}

  // Logits of all rows.
  std::vector<float> run(const std::vector<std::int32_t>& positions, const std::vector<std::int32_t>& sequences) {
    const auto rows = static_cast<std::int64_t>(positions.size());
    const std::vector<std::int32_t> tokens(positions.size(), 7);
    const std::vector<std::int32_t> tables = {1, 2, 3, 4};
    const KvPages kv{pages.data(), DType::kBFloat16, 5, kHeads, kWidth / kHeads};
    Array x(rows, kWidth), y(rows, kWidth), wide(rows, 3 * kWidth), inner(rows, kInner), logits(rows, kVocab);
    std::vector<std::int32_t> all(positions.size());
    std::iota(all.begin(), all.end(), 0);

    backend.set_rows({tokens, positions, sequences, tables, 2});
    backend.embed(wte, wpe.view(), x.view());
    backend.layer_norm(x.view(), gain.view(), gain.view(), 1e-5F, y.view());
    backend.linear(y.view(), qkv, {}, {}, wide.view());
    backend.attention(wide.view(), kv, 0.5F, y.view());
    backend.linear(y.view(), fc, {}, {Activation::kGeluErf, false}, inner.view());
    backend.linear(inner.view(), out, {}, {Activation::kNone, true}, x.view());
    backend.gather(x.view(), all, y.view());
    backend.layer_norm(y.view(), gain.view(), gain.view(), 1e-5F, y.view());
    backend.linear(y.view(), wte, {}, {}, logits.view());
    std::vector<float> host(logits.values.size());
    backend.download(host.data(), logits.values.data(), logits.view().bytes());
    return host;
  }

  Backend& backend;
  Random random;
  Matrix wte, qkv, fc, out;
  Array wpe, gain;
  Buffer pages;
};

OperationTotals totals_of(const PhaseProfile& phase, const OperationKind& kind) {
  OperationTotals found;
  for (const OperationTotals& totals : phase.operations) {
    if (totals.kind != kind) continue;
    CHECK(found.calls == 0);  // each kind stands there once
    found = totals;
  }
  return found;
}

void check_totals(const PhaseProfile& phase, const OperationKind& kind, std::int64_t calls, std::int64_t rows,
                  std::int64_t bytes_read, std::int64_t flops) {
  CAPTURE(static_cast<int>(kind.operation));
  CAPTURE(kind.out);
  const OperationTotals t = totals_of(phase, kind);
  CHECK(t.calls == calls);
  CHECK(t.rows == rows);
  CHECK(t.bytes_read == bytes_read);
  CHECK(t.flops == flops);
  CHECK(t.seconds >= 0.0);
}

}  // namespace

TEST_CASE("results are those of the inner backend, and each operation is counted in its phase") {
  const std::uint64_t seed = fresh_random().bits();
  const auto plain = make_reference_backend();
  ProfilingBackend profiling(make_reference_backend());
  CHECK(profiling.name() == "profiling " + plain->name());
  TinyModel expected(*plain, seed), model(profiling, seed);
  CHECK(profiling.profile()[Phase::kPrefill].operations.empty());

  const auto start = std::chrono::steady_clock::now();
  CHECK(model.run({0, 1, 2, 0, 1}, {0, 0, 0, 1, 1}) == expected.run({0, 1, 2, 0, 1}, {0, 0, 0, 1, 1}));
  CHECK(model.run({3, 2}, {0, 1}) == expected.run({3, 2}, {0, 1}));
  CHECK(model.run({4}, {0}) == expected.run({4}, {0}));
  const double elapsed_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();

  const PhaseProfile& prefill = profiling.profile()[Phase::kPrefill];
  const PhaseProfile& decode = profiling.profile()[Phase::kDecode];
  CHECK(prefill.microbatches == 1);
  CHECK(prefill.rows == 5);
  CHECK(decode.microbatches == 2);
  CHECK(decode.rows == 3);
  CHECK(prefill.operations.size() == 10);  // 4 of them linear
  CHECK(decode.operations.size() == 10);

  const auto matrix = [&](std::int64_t in, std::int64_t out) { return plain->matrix_bytes(in, out, DType::kFloat16); };
  const OperationKind qkv{Operation::kLinear, kWidth, 3 * kWidth, Activation::kNone};
  const OperationKind fc{Operation::kLinear, kWidth, kInner, Activation::kGeluErf};
  check_totals(prefill, qkv, 1, 5, matrix(kWidth, 3 * kWidth), 2 * 5 * kWidth * 3 * kWidth);
  check_totals(decode, qkv, 2, 3, 2 * matrix(kWidth, 3 * kWidth), 2 * 3 * kWidth * 3 * kWidth);
  check_totals(decode, fc, 2, 3, 2 * matrix(kWidth, kInner), 2 * 3 * kWidth * kInner);
  check_totals(decode, {Operation::kLinear, kWidth, kVocab, Activation::kNone}, 2, 3, 2 * matrix(kWidth, kVocab),
               2 * 3 * kWidth * kVocab);
  // Rows see 1 + 2 + 3 and 1 + 2 positions, of which 3 and 2 are distinct; then 4 and 3; then 5.
  check_totals(prefill, {Operation::kAttention}, 1, 5, 5 * 2 * kWidth * 2, 9 * 4 * kWidth);
  check_totals(decode, {Operation::kAttention}, 2, 3, 12 * 2 * kWidth * 2, 12 * 4 * kWidth);
  check_totals(decode, {Operation::kLayerNorm}, 4, 6, (6 + 4 * 2) * kWidth * 4, 0);
  check_totals(decode, {Operation::kEmbed}, 2, 3, 3 * kWidth * (2 + 4), 0);
  check_totals(decode, {Operation::kGather}, 2, 3, 3 * kWidth * 4, 0);
  check_totals(decode, {Operation::kDownload}, 2, 0, 3 * kVocab * 4, 0);
  check_totals(decode, {Operation::kSetRows}, 2, 3, (3 * 3 + 2 * 4) * 4, 0);

  double sum_s = 0.0;
  for (const PhaseProfile* phase : {&prefill, &decode}) {
    CHECK(phase->operations_s() > 0.0);
    CHECK(phase->between_operations_s >= 0.0);
    sum_s += phase->operations_s() + phase->between_operations_s + phase->before_microbatches_s;
  }
  CHECK(sum_s <= elapsed_s);
  CHECK(prefill.before_microbatches_s == 0.0);  // there was none before it
  CHECK(decode.before_microbatches_s > 0.0);
}

TEST_CASE("the first rows can be left out, up to the end of their microbatch") {
  ProfilingBackend profiling(make_reference_backend(), 5);
  TinyModel model(profiling, fresh_random().bits());
  model.run({0, 1, 2, 3}, {0, 0, 0, 0});
  model.run({4, 0}, {0, 1});
  CHECK(profiling.profile()[Phase::kPrefill].microbatches == 0);
  CHECK(profiling.profile()[Phase::kDecode].operations.empty());
  model.run({5, 1}, {0, 1});
  CHECK(profiling.profile()[Phase::kPrefill].microbatches == 0);
  CHECK(profiling.profile()[Phase::kDecode].microbatches == 1);
  CHECK(profiling.profile()[Phase::kDecode].operations.size() == 10);
  CHECK(profiling.profile()[Phase::kDecode].before_microbatches_s == 0.0);
}

TEST_CASE("attention in parts is counted as attention of the keys that are here") {
  ProfilingBackend profiling(make_reference_backend());
  constexpr std::int32_t kDim = kWidth / kHeads, kPages = 2 * kSegmentPages + 1;
  const Buffer pages = profiling.allocate(kPages * profiling.kv_page_bytes(kHeads, kDim, DType::kBFloat16));
  const KvPages kv{pages.data(), DType::kBFloat16, kPages, kHeads, kDim};
  // Two sequences of three segments: of the first the middle one is elsewhere, of the second all but the last.
  std::vector<std::int32_t> table(2 * (2 * kSegmentPages + 1), kElsewhere);
  for (std::int32_t p = 0; p < kSegmentPages; ++p) table[static_cast<std::size_t>(p)] = p;
  table[2 * kSegmentPages] = kSegmentPages;
  table.back() = kSegmentPages + 1;
  const std::vector<std::int32_t> positions{3, 1500, 2 * kSegmentPositions + 4, 2 * kSegmentPositions},
      sequences{0, 0, 0, 1};
  profiling.set_rows({{}, positions, sequences, table, 2 * kSegmentPages + 1});
  Random random = fresh_random();
  const Array qkv = random_array(random, 4, 3 * kWidth);
  Array parts(5, part_width(kHeads, kDim)), out(1, kWidth);
  profiling.append(qkv.view(), kv);
  const PhaseProfile& prefill = profiling.profile()[Phase::kPrefill];
  check_totals(prefill, {Operation::kAttention}, 1, 0, 4 * 2 * kWidth * 4, 0);
  profiling.attention_parts(qkv.view(), kv, 0.5F, 0, 4, parts.view());
  // Rows see 4, 1024, 1024 + 5 and 1 positions that are here.
  const std::int64_t bytes = 4 * 2 * kWidth * 4 + (kSegmentPositions + 5 + 1) * 2 * kWidth * 2;
  const std::int64_t flops = (4 + 2 * kSegmentPositions + 5 + 1) * 4 * kWidth;
  check_totals(prefill, {Operation::kAttention}, 2, 4, bytes, flops);
  profiling.attention_parts(qkv.view(), kv, 0.5F, 3, 1, parts.view().slice(4, 1));
  CHECK_THROWS_AS(profiling.attention_parts(qkv.view(), kv, 0.5F, 3, 2, parts.view()), std::invalid_argument);
  check_totals(prefill, {Operation::kAttention}, 3, 5, bytes + 2 * kWidth * 2, flops + 4 * kWidth);
  profiling.merge_parts(parts.view(), kHeads, std::vector{0, 2}, std::vector{2, 3}, out.view());
  check_totals(prefill, {Operation::kAttention}, 4, 5, bytes + 2 * kWidth * 2 + 2 * (kWidth + 2 * kHeads) * 4,
               flops + 4 * kWidth);
}

TEST_CASE("copies of pages are counted, and refused operations are not") {
  ProfilingBackend profiling(make_reference_backend());
  TinyModel model(profiling, fresh_random().bits());
  const KvPages kv{model.pages.data(), DType::kBFloat16, 5, kHeads, kWidth / kHeads};
  model.run({0}, {0});
  profiling.copy_page(kv, 1, 2);
  const PhaseProfile& decode = profiling.profile()[Phase::kDecode];
  CHECK(totals_of(decode, {Operation::kCopyPage}).calls == 1);
  CHECK(totals_of(decode, {Operation::kCopyPage}).bytes_read ==
        profiling.kv_page_bytes(kHeads, kWidth / kHeads, DType::kBFloat16));
  CHECK_THROWS_AS(profiling.copy_page(kv, 1, 5), std::invalid_argument);
  CHECK_THROWS_AS(profiling.layer_norm({}, {}, {}, 1e-5F, model.gain.view()), std::invalid_argument);
  CHECK(totals_of(decode, {Operation::kCopyPage}).calls == 1);
  CHECK(totals_of(decode, {Operation::kLayerNorm}).calls == 2);
  const Array logits(2, kVocab);
  const std::vector<LogitsQuery> queries{{1, 0}, {3, 2}};
  std::vector<std::byte> summaries(static_cast<std::size_t>(summary_bytes(queries)));
  profiling.summarize_logits(logits.view(), queries, summaries.data());
  check_totals(decode, {Operation::kSummarizeLogits}, 1, 2, 2 * kVocab * 4, 0);
}
