// How busy the stages of a pipeline are, and what continuous batching is worth: bench_batching [--requests N]
// [--stages N] [--in-flight N] [--slots N] [--pages N] [--model SYNTHETIC] [--seed N]
// [--static 0] [--write FILE.jsonl].
//
// Prompts of mixed length (log-normal, 10 to 800 tokens in, 10 to 200 out) go through the real scheduler. Each
// microbatch that it makes is run on one stage of the model (its middle block or blocks) on one thread here, and takes
// as long on every stage of an event simulation: a stage begins when it is free and the rows have come, tokens come
// back from the last one. So speeds are measured and only the stages' simultaneity is simulated; links take no time,
// and stages are alike. Compared with static batches: groups of as many prompts as there are slots, padded to the
// longest prompt and answer of the group, the next one when all are done.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <deque>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "kernels/backend.hpp"
#include "runtime/scheduler.hpp"
#include "runtime/stage_executor.hpp"
#include "runtime/stage_weights.hpp"
#include "runtime/weight_source.hpp"

namespace {

using namespace stagecoach;

struct Settings {
  int requests = 300;
  int stages = 4;
  int slots = 64;
  int in_flight = 0;  // 0: as runs have it
  int pages = 0;      // 0: enough for all
  std::string model = "synthetic:gpt2,n_layer=3,n_embd=512,n_head=8,vocab_size=1000,n_positions=1024,dtype=float16";
  unsigned seed = 1;
  bool fixed = true;         // compare with static batches
  std::string prompts_path;  // only write the prompts there, for stagecoach generate
};

// Seconds that a microbatch takes on one stage, measured.
class MeasuredStage {
 public:
  MeasuredStage(const Settings& settings, const SchedulerLimits& limits)
      : model_(open_model(settings.model)), backend_(make_cpu_backend({1, Simd::kBest})) {
    const BlockRange blocks{1, model_.config.n_layer - 2};
    executor_ =
        std::make_unique<StageExecutor>(*backend_, model_.config, blocks,
                                        load_stage(*backend_, *model_.weights, model_.config, blocks, model_.dtype, {}),
                                        StageLimits{limits.max_rows(), limits.pages, limits.tables(), DType::kFloat32});
    buffer_ = backend_->allocate(std::int64_t{limits.max_rows()} * model_.config.n_embd * 4);
    values_.resize(static_cast<std::size_t>(limits.max_rows()) * static_cast<std::size_t>(model_.config.n_embd));
    std::mt19937 random(7);
    for (float& value : values_) value = std::normal_distribution<float>()(random);
  }

  double run(const Microbatch& microbatch) {
    const Tensor rows = make_tensor(buffer_.data(), DType::kFloat32, static_cast<std::int64_t>(microbatch.rows.size()),
                                    model_.config.n_embd);
    std::copy_n(values_.begin(), rows.rows * rows.cols, static_cast<float*>(buffer_.data()));
    const auto start = std::chrono::steady_clock::now();
    executor_->run(microbatch, rows, [] {});
    while (!backend_->idle()) {
    }
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

 private:
  Model model_;
  std::unique_ptr<Backend> backend_;
  Buffer buffer_;
  std::unique_ptr<StageExecutor> executor_;
  std::vector<float> values_;
};

std::vector<Request> draw_requests(const Settings& settings) {
  std::mt19937 random(settings.seed);
  const auto draw = [&random](double median, int low, int high) {
    std::lognormal_distribution<double> length(std::log(median), 0.9);
    return std::clamp(static_cast<int>(length(random)), low, high);
  };
  std::vector<Request> requests(static_cast<std::size_t>(settings.requests));
  for (std::size_t i = 0; i < requests.size(); ++i) {
    requests[i].index = static_cast<std::int64_t>(i);
    requests[i].tokens.resize(static_cast<std::size_t>(draw(120, 10, 800)));
    for (std::int32_t& token : requests[i].tokens) token = static_cast<std::int32_t>(random() % 1000);
    requests[i].max_new_tokens = draw(60, 10, 200);
  }
  return requests;
}

struct Figures {
  double seconds = 0.0;      // simulated
  double steady_busy = 0.0;  // share of the stages' time between 15 % and 75 % of all tokens
  double rows = 0.0;         // of a microbatch, on average
  std::int64_t put_back = 0;
};

// `hand_out` gives requests as the scheduler wants them.
template <typename HandOut>
Figures simulate(const Settings& settings, const SchedulerLimits& limits, std::int64_t all_tokens,
                 const HandOut& hand_out) {
  MeasuredStage stage(settings, limits);
  Scheduler scheduler(limits);
  struct Flying {
    Microbatch microbatch;
    double back = 0.0;  // when its tokens are known
  };
  std::deque<Flying> flying;
  const auto stages = static_cast<std::size_t>(settings.stages);
  std::vector<double> free_at(stages, 0.0);
  struct Work {
    double begin, end;
  };
  std::vector<std::vector<Work>> work(stages);
  double now = 0.0, from = -1.0, to = -1.0;
  std::int64_t tokens = 0, rows = 0, microbatches = 0;
  while (true) {
    hand_out(scheduler);
    now = std::max(now, free_at[0]);
    std::optional<Microbatch> next = scheduler.next();
    if (next) {
      const double seconds = stage.run(*next);
      double at = now;
      for (std::size_t s = 0; s < stages; ++s) {
        at = std::max(at, free_at[s]);
        work[s].push_back({at, at + seconds});
        at = free_at[s] = at + seconds;
      }
      rows += static_cast<std::int64_t>(next->rows.size());
      ++microbatches;
      flying.push_back({std::move(*next), at});
    }
    // Tokens that are back by the time at which the first stage could begin something else.
    const double until = next ? std::max(now, free_at[0]) : flying.empty() ? now : flying.front().back;
    if (!next && flying.empty()) break;
    while (!flying.empty() && flying.front().back <= until) {
      TokenBatch answer{flying.front().microbatch.id, {}};
      for (const Row& row : flying.front().microbatch.rows) {
        if (wants_logits(row)) answer.tokens.push_back({row.slot, 5, 0.0F});
      }
      now = std::max(now, flying.front().back);
      tokens += static_cast<std::int64_t>(answer.tokens.size());
      flying.pop_front();
      scheduler.complete(answer);
      if (from < 0.0 && tokens > all_tokens * 15 / 100) from = now;
      if (to < 0.0 && tokens > all_tokens * 75 / 100) to = now;
    }
  }
  double busy = 0.0;
  for (const auto& of_stage : work) {
    for (const Work& w : of_stage) busy += std::max(0.0, std::min(w.end, to) - std::max(w.begin, from));
  }
  return {now, busy / ((to - from) * static_cast<double>(stages)),
          static_cast<double>(rows) / static_cast<double>(microbatches), scheduler.times_put_back()};
}

SchedulerLimits limits_of(const Settings& settings) {
  SchedulerLimits limits;
  limits.n_positions = 1024;
  limits.slots = settings.slots;
  limits.pages = settings.pages > 0 ? settings.pages : settings.slots * 17;
  limits.chunk_tokens = 256;
  limits.in_flight = settings.in_flight > 0 ? settings.in_flight : settings.stages + settings.stages / 2;
  return limits;
}

Settings settings_of(int argc, char** argv) {
  Settings settings;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    const std::string value = argv[i + 1];
    if (name == "--model" || name == "--write") {
      (name == "--model" ? settings.model : settings.prompts_path) = value;
      continue;
    }
    const int number = std::atoi(value.c_str());
    if (name == "--requests") settings.requests = number;
    if (name == "--stages") settings.stages = number;
    if (name == "--slots") settings.slots = number;
    if (name == "--static") settings.fixed = number != 0;
    if (name == "--in-flight") settings.in_flight = number;
    if (name == "--pages") settings.pages = number;
    if (name == "--seed") settings.seed = static_cast<unsigned>(number);
  }
  return settings;
}

}  // namespace

int main(int argc, char** argv) {
  const Settings settings = settings_of(argc, argv);
  const SchedulerLimits limits = limits_of(settings);
  const std::vector<Request> requests = draw_requests(settings);
  if (!settings.prompts_path.empty()) {
    std::ofstream out(settings.prompts_path);
    for (const Request& request : requests) {
      out << fmt::format("{{\"tokens\": [{}], \"max_new_tokens\": {}}}\n", fmt::join(request.tokens, ", "),
                         request.max_new_tokens);
    }
    return 0;
  }
  std::int64_t prompt_tokens = 0, new_tokens = 0;
  for (const Request& request : requests) {
    prompt_tokens += static_cast<std::int64_t>(request.tokens.size());
    new_tokens += request.max_new_tokens;
  }
  fmt::print("{} prompts of {} tokens, {} new ones; {} stages, {} slots, {} pages; {}\n", requests.size(),
             prompt_tokens, new_tokens, settings.stages, limits.slots, limits.pages, settings.model);

  std::size_t given = 0;
  const Figures continuous = simulate(settings, limits, new_tokens, [&](Scheduler& scheduler) {
    while (given < requests.size() && scheduler.wants_requests()) scheduler.add(requests[given++]);
  });
  const double rate = static_cast<double>(new_tokens) / continuous.seconds;
  fmt::print("continuous: {:.1f} s, {:.0f} new tokens/s, stages busy {:.3f}, {:.0f} rows a microbatch, {} put back\n",
             continuous.seconds, rate, continuous.steady_busy, continuous.rows, continuous.put_back);

  if (!settings.fixed) return 0;

  std::deque<Request> padded;
  std::int64_t padded_tokens = 0;
  for (std::size_t first = 0; first < requests.size(); first += static_cast<std::size_t>(limits.slots)) {
    const std::size_t end = std::min(requests.size(), first + static_cast<std::size_t>(limits.slots));
    std::size_t prompt = 0;
    std::int32_t answer = 0;
    for (std::size_t i = first; i < end; ++i) {
      prompt = std::max(prompt, requests[i].tokens.size());
      answer = std::max(answer, requests[i].max_new_tokens);
    }
    for (std::size_t i = first; i < end; ++i) {
      Request request = requests[i];
      request.tokens.resize(prompt, 1);
      request.max_new_tokens = answer;
      padded_tokens += answer;
      padded.push_back(std::move(request));
    }
  }
  SchedulerLimits static_limits = limits;
  static_limits.pages = settings.slots * 17;
  std::size_t left_in_group = 0;
  const Figures fixed = simulate(settings, static_limits, padded_tokens, [&](Scheduler& scheduler) {
    if (left_in_group == 0) {
      if (!scheduler.idle()) return;
      left_in_group = std::min(padded.size(), static_cast<std::size_t>(limits.slots));
    }
    while (left_in_group > 0 && scheduler.wants_requests()) {
      scheduler.add(std::move(padded.front()));
      padded.pop_front();
      --left_in_group;
    }
  });
  const double fixed_rate = static_cast<double>(new_tokens) / fixed.seconds;
  fmt::print("static:     {:.1f} s, {:.0f} new tokens/s that were asked for, stages busy {:.3f}\n", fixed.seconds,
             fixed_rate, fixed.steady_busy);
  fmt::print("continuous is {:.2f} times as fast\n", rate / fixed_rate);
}
