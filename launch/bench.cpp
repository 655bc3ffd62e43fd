#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <numeric>
#include <optional>

#include "launch/commands.hpp"
#include "launch/log.hpp"
#include "launch/machine.hpp"
#include "launch/profile_table.hpp"
#include "launch/session.hpp"
#include "launch/watch.hpp"
#include "partition/wording.hpp"
#include "runtime/context_shards.hpp"
#include "runtime/output_file.hpp"
#include "runtime/results.hpp"

namespace stagecoach {
namespace {

using Clock = std::chrono::steady_clock;

struct Timing {
  double ttft_s = 0.0;
  double prefill_tokens_per_s = 0.0;
  double decode_tokens_per_s = 0.0;
};

// One repeat: all prompts are prefilled first, then all sequences decode together, so that both rates are clean.
class Repeat {
 public:
  Repeat(const Options& options, const ModelConfig& config, std::int64_t index) : options_(options) {
    // Arbitrary ids that differ between repeats and sequences: a counter through a multiplicative hash.
    std::uint64_t state = static_cast<std::uint64_t>(index) * 1000003U + 1U;
    for (std::int32_t b = 0; b < options.batch; ++b) {
      Request request;
      request.index = b;
      request.max_new_tokens = options.new_tokens;
      request.ignore_eos = true;
      for (std::int32_t t = 0; t < options.prompt_tokens; ++t) {
        state = state * 6364136223846793005U + 1442695040888963407U;
        request.tokens.push_back(
            static_cast<std::int32_t>((state >> 33) % static_cast<std::uint64_t>(config.vocab_size)));
      }
      requests_.push_back(std::move(request));
    }
  }

  Timing run(Leader& leader, const SchedulerLimits& limits, RunMeter* meter) {
    Scheduler scheduler(limits);
    LeaderHooks hooks;
    std::size_t next = 0;
    hooks.next_request = [&]() -> std::optional<Request> {
      if (next == requests_.size()) return std::nullopt;
      return std::move(requests_[next++]);
    };
    hooks.exhausted = [&] { return next == requests_.size(); };
    hooks.on_finished = [](Sample&&) {};
    std::int64_t tokens = 0;
    std::vector<bool> started(static_cast<std::size_t>(options_.batch));
    std::int32_t prefilled = 0;
    std::int64_t before_decode = 0;
    Clock::time_point first, all_prefilled;
    hooks.on_token = [&](const Scheduler::TokenEvent& event) {
      ++tokens;
      const auto index = static_cast<std::size_t>(event.request_index);
      if (started[index]) return;
      started[index] = true;
      const Clock::time_point now = Clock::now();
      if (prefilled == 0) first = now;
      if (++prefilled == options_.batch) {
        all_prefilled = now;
        before_decode = tokens;
      }
    };
    count_prompts(hooks, meter);
    attach(hooks, meter);
    const Clock::time_point start = Clock::now();
    leader.run(scheduler, hooks);
    const Clock::time_point end = Clock::now();
    const auto seconds = [](Clock::time_point a, Clock::time_point b) {
      return std::chrono::duration<double>(b - a).count();
    };
    Timing timing;
    timing.ttft_s = seconds(start, first);
    timing.prefill_tokens_per_s =
        static_cast<double>(options_.batch) * options_.prompt_tokens / seconds(start, all_prefilled);
    timing.decode_tokens_per_s =
        tokens == before_decode ? 0.0 : static_cast<double>(tokens - before_decode) / seconds(all_prefilled, end);
    return timing;
  }

 private:
  const Options& options_;
  std::vector<Request> requests_;
};

struct Spread {
  double min, median, max;
};

Spread spread_of(const std::vector<Timing>& timings, double Timing::*field) {
  std::vector<double> values;
  for (const Timing& timing : timings) values.push_back(timing.*field);
  std::ranges::sort(values);
  const std::size_t n = values.size();
  const double median = n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
  return {values.front(), median, values.back()};
}

std::string json_of(const Spread& s) {
  return fmt::format("{{\"min\": {:.6g}, \"median\": {:.6g}, \"max\": {:.6g}}}", s.min, s.median, s.max);
}

struct Figures {
  Spread prefill, decode, ttft;
  std::int64_t weight_bytes = 0, kv_bytes = 0, peak_bytes = 0;
};

void write_json(OutputFile& file, const Options& options, const Session& session, const Figures& f) {
  const std::string text = fmt::format(
      "{{\"model\": {}, \"dtype\": \"{}\", \"device\": \"{}\", \"stages\": {}, \"threads\": {}, \"batch\": {}, "
      "\"prompt_tokens\": {}, \"new_tokens\": {}, \"prefill_tokens_per_s\": {}, \"decode_tokens_per_s\": {}, "
      "\"ttft_s\": {}, "
      "\"weight_bytes\": {}, \"kv_bytes\": {}, \"peak_bytes\": {}}}\n",
      json_string(session.model().name), name_of(session.dtype()), session.device(), session.plan().stage_count(),
      session.threads(), options.batch, options.prompt_tokens, options.new_tokens, json_of(f.prefill),
      json_of(f.decode), json_of(f.ttft), f.weight_bytes, f.kv_bytes, f.peak_bytes);
  file.write(text);
  file.commit();
}

void print_table(const Options& options, const Session& session, const Figures& f) {
  std::string table =
      fmt::format("{} {}, {} stages x {} threads, batch {}, {} prompt tokens, {} new tokens, {} repeats\n",
                  session.model().name, name_of(session.dtype()), session.plan().stage_count(), session.threads(),
                  options.batch, options.prompt_tokens, options.new_tokens, options.repeat);
  const auto row = [&table](const char* name, const Spread& s, const char* unit) {
    table += fmt::format("  {:<22} {:>10.4g} {:>10.4g} {:>10.4g}  {}\n", name, s.min, s.median, s.max, unit);
  };
  table += fmt::format("  {:<22} {:>10} {:>10} {:>10}\n", "", "min", "median", "max");
  row("prefill", f.prefill, "tokens/s");
  if (options.new_tokens > 1) row("decode", f.decode, "tokens/s");
  row("time to first token", f.ttft, "s");
  table += fmt::format("  weights {}, KV cache {}, peak {} (sum over stages)\n", readable_bytes(f.weight_bytes),
                       readable_bytes(f.kv_bytes), readable_bytes(f.peak_bytes));
  write_all(STDOUT_FILENO, table, "standard output");
}

// Rows that every stage runs in one repeat: a sequence's last token is not fed back.
std::int64_t rows_of_repeat(const Options& options) {
  return std::int64_t{options.batch} * (std::int64_t{options.prompt_tokens} + options.new_tokens - 1);
}

// The tables of all stages, in their order. Collective.
std::string profile_tables(const Session& session, const World& world) {
  std::string mine;
  for (const auto& [stage, profile] : session.profiles()) {
    mine += profile_table(profile, stage, session.plan().stages[static_cast<std::size_t>(stage)].blocks);
  }
  std::string all;
  for (const std::vector<std::byte>& text : world.from_all(std::as_bytes(std::span(mine)))) {
    all.append(reinterpret_cast<const char*>(text.data()), text.size());
  }
  return all;
}

}  // namespace

int run_bench(const Options& options, const World& world) {
  Session session(options, world);
  RunWatch watch(options, world);
  std::optional<OutputFile> json;
  const ModelConfig& config = session.model().config;
  if (options.profile) session.profile_after(rows_of_repeat(options));
  session.prepare([&]() -> std::optional<WorkSize> {
    const std::int64_t positions = std::int64_t{options.prompt_tokens} + options.new_tokens - 1;
    if (positions > config.n_positions) {
      throw UsageError(fmt::format("--prompt-tokens {} and --new-tokens {} need {} positions, the model has {}",
                                   options.prompt_tokens, options.new_tokens, positions, config.n_positions));
    }
    session.catch_interrupts();
    watch.open();
    if (!options.json_path.empty()) json.emplace(options.json_path);
    // Prompts of one repeat, at the most with one token's results each.
    const std::int64_t tokens = std::int64_t{options.prompt_tokens} + 2LL * options.new_tokens;
    WorkSize work;
    work.sequences = options.batch;
    work.pages = pages_of_shard(pages_for(positions), 0, 0, session.grid().shards);
    work.prompt_bytes = options.batch * tokens * 4;
    work.prompt_tokens = std::int64_t{options.batch} * options.prompt_tokens;
    work.new_tokens = std::int64_t{options.batch} * options.new_tokens;
    return work;
  });
  SchedulerLimits limits = session.scheduler_limits();
  limits.hold_decode = true;
  if (world.rank() == 0 && limits.slots < options.batch) {
    log_warning(
        fmt::format("only {} of {} sequences run at once; raise --in-flight to run more", limits.slots, options.batch));
  }
  std::vector<Timing> timings;
  watch.begin();
  RunMeter* meter = watch.add_meter();
  const std::vector<StageReport> reports = session.run([&](Leader& leader, const OfficeOptions&) {
    Repeat(options, config, 0).run(leader, limits, meter);  // not counted: first touch of pages, caches, threads
    for (std::int32_t r = 1; r <= options.repeat; ++r)
      timings.push_back(Repeat(options, config, r).run(leader, limits, meter));
  });
  watch.finish(session);
  const std::string profiles = options.profile ? profile_tables(session, world) : "";
  if (world.rank() != 0) return 0;
  Figures figures{spread_of(timings, &Timing::prefill_tokens_per_s), spread_of(timings, &Timing::decode_tokens_per_s),
                  spread_of(timings, &Timing::ttft_s)};
  for (const StageReport& report : reports) {
    figures.weight_bytes += report.weight_bytes;
    figures.kv_bytes += report.kv_bytes;
    figures.peak_bytes += report.peak_bytes;
  }
  print_table(options, session, figures);
  write_all(STDOUT_FILENO, profiles, "standard output");
  if (json) write_json(*json, options, session, figures);
  return 0;
}

}  // namespace stagecoach
