// What --metrics and --trace cost: bench_trace [ROUNDS]. Decoding of a small model, whose microbatches are short, with
// both and with neither in turn, some milliseconds each so that a noisy machine disturbs them alike; ratios of the
// medians, of seconds and of the leader's time on a core, which does not count that others had it (one stage only: of
// several each waits by polling). Then what a stage's clock takes by itself for each microbatch, which is what those
// ratios should be about. Writing the files comes after a run and is not part of it.
#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#include "runtime/loopback.hpp"
#include "runtime/metrics.hpp"
#include "runtime/pipeline.hpp"
#include "runtime/staged_transport.hpp"
#include "runtime/weight_source.hpp"

namespace {

using namespace stagecoach;

constexpr const char* kModel = "synthetic:gpt2,n_layer=4,n_embd=256,n_head=4,vocab_size=2048,n_positions=64";
constexpr std::int32_t kSequences = 4, kPromptTokens = 4, kNewTokens = 24;

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

double core_s() {
  timespec now = {};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

struct Cost {
  double seconds = 0, core_seconds = 0;
};

struct Costs {
  std::vector<double> seconds, core_seconds;
  void add(const Cost& cost) {
    seconds.push_back(cost.seconds);
    core_seconds.push_back(cost.core_seconds);
  }
};

struct Stage {
  std::unique_ptr<Backend> backend;
  std::unique_ptr<StageExecutor> executor;
};

class Stages {
 public:
  explicit Stages(std::int32_t count) : model_(open_model(kModel)) {
    limits_.n_positions = model_.config.n_positions;
    limits_.slots = kSequences;
    limits_.pages = kSequences * pages_for(kPromptTokens + kNewTokens);
    limits_.chunk_tokens = kSequences * kPromptTokens;
    limits_.in_flight = count;
    scheduler_ = std::make_unique<Scheduler>(limits_);
    const std::int32_t each = model_.config.n_layer / count;
    for (std::int32_t s = 0; s < count; ++s) {
      Stage& stage = stages_.emplace_back();
      stage.backend = make_cpu_backend({1});
      const BlockRange blocks{s * each, (s + 1) * each - 1};
      StageWeights weights = load_stage(*stage.backend, *model_.weights, model_.config, blocks, DType::kFloat16, {});
      stage.executor = std::make_unique<StageExecutor>(
          *stage.backend, model_.config, blocks, std::move(weights),
          StageLimits{limits_.max_rows(), limits_.pages, limits_.tables(), DType::kFloat32});
    }
  }

  // From the first token to the last.
  Cost decode(bool watched) {
    const auto count = static_cast<std::int32_t>(stages_.size());
    LoopbackHub hub(LoopbackMode::kRendezvous);
    std::vector<std::unique_ptr<Mailbox>> mailboxes;
    std::vector<std::unique_ptr<Transport>> transports;
    std::vector<TraceBuffer> traces(stages_.size());
    std::vector<StageContext> contexts;
    for (std::int32_t s = 0; s < count; ++s) {
      Stage& stage = stages_[static_cast<std::size_t>(s)];
      mailboxes.push_back(hub.mailbox(s));
      transports.push_back(make_staged_transport(hub.transport(s), *stage.backend));
      StageContext context;
      context.stage = s;
      context.stages = count;
      context.in_flight = count;
      context.backend = stage.backend.get();
      context.executor = stage.executor.get();
      if (count > 1) context.mailbox = mailboxes.back().get();
      if (count > 1) context.transport = transports.back().get();
      if (watched) context.trace = &traces[static_cast<std::size_t>(s)];
      contexts.push_back(context);
    }
    std::vector<std::jthread> followers;
    for (std::int32_t s = 1; s < count; ++s) {
      followers.emplace_back([&contexts, s] { run_follower(contexts[static_cast<std::size_t>(s)]); });
    }
    Leader leader(contexts.front());
    const Cost cost = lead(leader, watched);
    leader.stop();
    return cost;
  }

 private:
  Cost lead(Leader& leader, bool watched) {
    RunMeter meter;
    std::int32_t next = 0;
    std::int64_t begin = 0, end = 0;
    double begin_core_s = 0, end_core_s = 0;
    LeaderHooks hooks;
    hooks.next_request = [&]() -> std::optional<Request> {
      if (next == kSequences) return std::nullopt;
      Request request;
      request.index = next++;
      request.tokens.assign(kPromptTokens, 7 + next);
      request.max_new_tokens = kNewTokens;
      request.ignore_eos = true;
      if (watched) meter.taken(request, now_ns());
      return request;
    };
    hooks.exhausted = [&] { return next == kSequences; };
    hooks.on_token = [&](const Scheduler::TokenEvent& event) {
      if (begin == 0) {
        begin = now_ns();
        begin_core_s = core_s();
      }
      if (watched) meter.token(event, now_ns());
    };
    hooks.on_finished = [&](Sample&& sample) {
      if (watched) meter.finished(sample);
      end = now_ns();
      end_core_s = core_s();
    };
    leader.run(*scheduler_, hooks);
    return {1e-9 * static_cast<double>(end - begin), end_core_s - begin_core_s};
  }

  Model model_;
  SchedulerLimits limits_;
  std::unique_ptr<Scheduler> scheduler_;  // of all runs: it knows what the stages' slots hold
  std::vector<Stage> stages_;
};

// Nanoseconds for each microbatch of `rows` decode rows, as stage 0 of several has them.
double clock_ns(TraceBuffer* trace, std::int32_t rows) {
  constexpr int kMany = 100'000;
  Microbatch microbatch;
  microbatch.rows.resize(static_cast<std::size_t>(rows));
  for (Row& row : microbatch.rows) row.position = 7;
  StageClock clock(trace);
  const std::int64_t begin = now_ns();
  for (int i = 0; i < kMany; ++i) {
    clock.scheduled(now_ns(), 1);  // tokens came
    clock.scheduled(now_ns(), 1);  // a microbatch was made
    clock.begin_compute(microbatch);
    clock.end_compute();
    if (trace == nullptr) continue;
    TraceEvent sent;  // of rows
    sent.start_ns = now_ns();
    sent.duration_ns = now_ns() - sent.start_ns;
    trace->add(sent);
  }
  return static_cast<double>(now_ns() - begin) / kMany;
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 1000;
  for (const std::int32_t count : {1, 2}) {
    Stages stages(count);
    stages.decode(false);
    Costs without, with;
    for (int round = 0; round < rounds; ++round) {
      const bool first = round % 2 == 0;
      (first ? with : without).add(stages.decode(first));
      (first ? without : with).add(stages.decode(!first));
    }
    const auto row = [&](const char* what, const std::vector<double>& a, const std::vector<double>& b) {
      const double to_us = 1e6 / (kNewTokens - 1);
      std::vector<double> ratios;  // of neighbours in time
      for (std::size_t i = 0; i < a.size(); ++i) ratios.push_back(b[i] / a[i]);
      fmt::print(
          "{} stage{}, {}: {:.1f} us a step without, {:.1f} with, ratio {:.4f} (medians of {}), median of pairs' "
          "ratios "
          "{:.4f}; best {:.1f}, {:.1f}\n",
          count, count == 1 ? "" : "s", what, to_us * median(a), to_us * median(b), median(b) / median(a), rounds,
          median(ratios), to_us * std::ranges::min(a), to_us * std::ranges::min(b));
    };
    row("wall", without.seconds, with.seconds);
    if (count == 1) row("on a core", without.core_seconds, with.core_seconds);
  }
  TraceBuffer trace;
  fmt::print("a microbatch of 16 rows: {:.0f} ns for times alone, {:.0f} ns with events\n", clock_ns(nullptr, 16),
             clock_ns(&trace, 16));
}
