#include "launch/measure.hpp"

#include <algorithm>
#include <chrono>
#include <initializer_list>
#include <vector>

#include "partition/cost.hpp"
#include "runtime/stage_executor.hpp"

namespace stagecoach {
namespace {

using Clock = std::chrono::steady_clock;

// Blocks of at least this size together stay in no cache, as those of a whole stage do not.
constexpr std::int64_t kLoadedBytes = std::int64_t{256} << 20;
constexpr std::int32_t kMostContext = 1024;  // that attention is measured with
constexpr double kPointSeconds = 0.4;        // to spend on each point, but at least kLeastRuns runs
constexpr int kLeastRuns = 3;
constexpr int kMostRuns = 50;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double median(std::vector<double>& values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::ranges::nth_element(values, middle);
  return *middle;
}

class Bench {
 public:
  Bench(ProfilingBackend& backend, const Model& model, const MeasureOptions& options)
      : backend_(backend), o_(options), config_(model.config), blocks_(blocks_to_load(backend, model, options)) {
    context_ = std::clamp(config_.n_positions - o_.most_rows, 0, kMostContext);
    rows_ = std::min(o_.most_rows, config_.n_positions);
    StageWeights weights = load_stage(backend, *model.weights, config_, blocks_, o_.dtype, {});
    const StageLimits limits{rows_, pages_for(context_ + rows_), 1, o_.kv_dtype};
    executor_ = std::make_unique<StageExecutor>(backend, config_, blocks_, std::move(weights), limits);
    residual_ = backend.allocate(residual_bytes(rows_, config_.n_embd));
    std::vector<float> values(static_cast<std::size_t>(rows_) * static_cast<std::size_t>(config_.n_embd));
    std::uint32_t state = 1;
    for (float& value : values) {
      state = state * 1664525U + 1013904223U;
      value = static_cast<float>(state >> 8) * 0x1p-24F - 0.5F;
    }
    values_ = std::move(values);
    Microbatch pages;
    SlotCommand append{SlotCommand::Kind::kAppendPages, 0};
    for (std::int32_t p = 0; p < limits.pages; ++p) append.pages.push_back(p);
    pages.commands.push_back(append);
    executor_->run(pages, residual(0), [] {});
  }

  DeviceSpeed measure() {
    run(1, 0, 0);  // first touch of everything
    run(rows_, 0, 0);
    DeviceSpeed speed;
    const double width = static_cast<double>(blocks_.count()) * config_.n_embd;
    std::vector<Curve::Point> attention{{1.0, 0.0}};
    std::vector<Curve::Point> head{{1.0, 0.0}};
    std::vector<Curve::Point> product;

    backend_.set_counting(true);
    for (const std::int32_t r : row_counts({1, 16, 64, 256})) {
      const double channels = prompt_chunk(context_, r).prompt_keys() * width;
      add_point(attention, r, time(r, context_, 0, &Parts::attention_s) / channels);
    }
    for (const std::int32_t r : row_counts({1, 2, 4, 8, 16, 32, kHeadRows})) {
      if (r > kHeadRows || r + 1 > config_.n_positions) break;
      add_point(head, r, time(r, 0, r, &Parts::head_s) / static_cast<double>(head_elements(config_)));
    }
    speed.attention = Curve(std::move(attention));
    speed.head = Curve(std::move(head));

    // Norms, activations and what lies between operations count as products. A device that works through a queue is
    // not to be stopped after each of them.
    backend_.set_counting(backend_.in_host_memory());
    const double elements = static_cast<double>(blocks_.count()) * static_cast<double>(block_matrix_elements(config_));
    for (const std::int32_t r :
         row_counts({1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048})) {
      double rest_s = time(r, 0, 0, &Parts::rest_s);
      if (!backend_.in_host_memory()) rest_s -= speed.attention.at(r) * prompt_chunk(0, r).prompt_keys() * width;
      product.push_back({static_cast<double>(r), std::max(rest_s, 0.0) / elements});
    }
    speed.product = Curve(std::move(product));
    return speed;
  }

 private:
  static BlockRange blocks_to_load(const Backend& backend, const Model& model, const MeasureOptions& options) {
    const ModelConfig& c = model.config;
    const std::int64_t bytes =
        backend.matrix_bytes(c.n_embd, (block_matrix_elements(c) + c.n_embd - 1) / c.n_embd, options.dtype);
    const std::int64_t count = std::clamp<std::int64_t>((kLoadedBytes + bytes - 1) / bytes, 2, 12);
    return {static_cast<std::int32_t>(std::max<std::int64_t>(0, c.n_layer - count)), c.n_layer - 1};
  }

  std::vector<std::int32_t> row_counts(std::initializer_list<std::int32_t> wanted) const {
    std::vector<std::int32_t> counts;
    for (const std::int32_t r : wanted) {
      if (r <= rows_) counts.push_back(r);
    }
    return counts;
  }

  Tensor residual(std::int64_t rows) const {
    return make_tensor(residual_.data(), DType::kFloat32, rows, config_.n_embd);
  }

  // The first point of a curve is there already, in case that none can be measured.
  static void add_point(std::vector<Curve::Point>& points, std::int32_t rows, double value) {
    if (rows == 1) points.clear();
    points.push_back({static_cast<double>(rows), value});
  }

  // Of one run; what was not counted is part of the rest.
  struct Parts {
    double attention_s = 0.0;
    double head_s = 0.0;
    double rest_s = 0.0;
  };
  // Of all runs so far.
  Parts counted() const {
    Parts sum;
    for (const PhaseProfile& phase : backend_.profile().phases) {
      for (const OperationTotals& o : phase.operations) {
        const bool logits = o.kind.operation == Operation::kLinear && o.kind.out == config_.vocab_size;
        if (o.kind.operation == Operation::kAttention) sum.attention_s += o.seconds;
        if (logits || o.kind.operation == Operation::kSummarizeLogits) sum.head_s += o.seconds;
      }
    }
    return sum;
  }

  // `rows` rows from position `first`, logits of the last `scored` of them.
  Parts run(std::int32_t rows, std::int32_t first, std::int32_t scored) {
    Microbatch microbatch;
    microbatch.id = 1;
    for (std::int32_t r = 0; r < rows; ++r) {
      Row row{r % config_.vocab_size, 0, first + r, 0};
      if (r >= rows - scored) {
        row.flags = kRowScore;
        row.target = 0;
      }
      microbatch.rows.push_back(row);
    }
    backend_.upload(residual_.data(), values_.data(), residual(rows).bytes());
    backend_.synchronize();
    const Parts before = counted();
    const Clock::time_point start = Clock::now();
    executor_->run(microbatch, residual(rows), [] {});
    backend_.synchronize();
    const double all_s = seconds_since(start);
    Parts parts = counted();
    parts.attention_s -= before.attention_s;
    parts.head_s -= before.head_s;
    parts.rest_s = all_s - parts.attention_s - parts.head_s;
    return parts;
  }

  double time(std::int32_t rows, std::int32_t first, std::int32_t scored, double Parts::*part) {
    if (o_.in_step) o_.in_step();
    std::vector<double> times;
    const Clock::time_point start = Clock::now();
    while (static_cast<int>(times.size()) < kLeastRuns ||
           (seconds_since(start) < kPointSeconds && static_cast<int>(times.size()) < kMostRuns)) {
      times.push_back(run(rows, first, scored).*part);
    }
    return median(times);
  }

  ProfilingBackend& backend_;
  const MeasureOptions& o_;
  ModelConfig config_;
  BlockRange blocks_;
  std::int32_t context_ = 0;
  std::int32_t rows_ = 0;
  std::unique_ptr<StageExecutor> executor_;
  Buffer residual_;
  std::vector<float> values_;
};

constexpr int kPings = 200;
constexpr int kTransfers = 8;
constexpr std::int64_t kTransferRows = 256;

void take(Mailbox& mailbox, int peer, const std::function<void()>& wait) {
  while (!mailbox.take(peer, Channel::kHeader)) {
    mailbox.flushed();
    wait();
  }
}

}  // namespace

DeviceSpeed measure_device(ProfilingBackend& backend, const Model& model, const MeasureOptions& options) {
  return Bench(backend, model, options).measure();
}

LinkSpeed measure_link(std::int32_t stage, Mailbox& mailbox, Transport& transport, Backend& backend,
                       std::int64_t row_values, const std::function<void()>& wait) {
  const std::byte sign{1};
  const auto post = [&] { mailbox.post(1 - stage, Channel::kHeader, std::span(&sign, 1)); };
  Clock::time_point start;
  for (int i = 0; i <= kPings; ++i) {
    if (i == 1) start = Clock::now();  // the first one finds the other in place
    if (stage == 0) post();
    take(mailbox, 1 - stage, wait);
    if (stage == 1) post();
  }
  LinkSpeed link;
  link.latency_s = seconds_since(start) / kPings / 2;
  const Buffer memory = backend.allocate(residual_bytes(kTransferRows, row_values));
  const Tensor rows = make_tensor(memory.data(), DType::kFloat32, kTransferRows, row_values);
  transport.prepare({static_cast<std::byte*>(memory.data()), memory.bytes()});
  for (int i = 0; i <= kTransfers; ++i) {
    if (i == 1) start = Clock::now();
    const Transport::Ticket ticket = stage == 0 ? transport.send(rows) : transport.receive(rows);
    while (!transport.done(ticket)) wait();
    if (stage == 1) post();
    if (stage == 0) take(mailbox, 1, wait);
  }
  const double transfer_s = seconds_since(start) / kTransfers;
  link.byte_s = std::max(0.0, transfer_s - 2 * link.latency_s) / static_cast<double>(rows.bytes());
  while (!mailbox.flushed()) wait();
  return link;
}

}  // namespace stagecoach
