#include "launch/prompt_job.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>

#include "launch/interrupt.hpp"
#include "launch/log.hpp"
#include "launch/progress.hpp"
#include "runtime/checksum.hpp"
#include "runtime/wire.hpp"

namespace stagecoach {

const Tokenizer* tokenizer_of(const Model& model) {
  return model.tokenizer ? &*model.tokenizer : nullptr;
}

PromptOptions prompt_options(const Options& options, const Model& model) {
  PromptOptions prompts;
  prompts.n_positions = model.config.n_positions;
  prompts.vocab_size = model.config.vocab_size;
  prompts.shard = options.shard;
  prompts.shards = options.shards;
  if (const char* folder = std::getenv("TMPDIR")) prompts.temporary_folder = folder;
  return prompts;
}

namespace {

// A hash of the ones before and this one.
std::uint64_t add_to_hash(std::uint64_t hash, const Request& r) {
  wire::Writer out;
  out.put(hash);
  out.put(r.index);
  out.put(std::string_view(r.id.value_or("")));
  out.put(std::string_view(r.prompt.value_or("")));
  out.put_count(r.tokens.size());
  for (const std::int32_t token : r.tokens) out.put(token);
  for (const std::int32_t n : {r.max_new_tokens, r.num_samples, r.sampling.top_k}) out.put(n);
  for (const double x : {r.sampling.temperature, r.sampling.top_p, r.sampling.repetition_penalty}) out.put(x);
  out.put(r.seed);
  for (const bool flag : {r.id.has_value(), r.prompt.has_value(), r.ignore_eos, r.logprobs}) {
    out.put(static_cast<std::uint8_t>(flag));
  }
  for (const std::string& stop : r.stop) out.put(std::string_view(stop));
  return xxh3_of(out.bytes());
}

}  // namespace

void open_prompts(PromptJob& job, const Options& options, const Session& session, const PromptOptions& prompts) {
  const Tokenizer* tokenizer = tokenizer_of(session.model());
  if (!options.prompts_path.empty()) {
    job.reader = PromptReader::from_file(options.prompts_path, tokenizer, prompts);
  } else if (options.command == Command::kScore) {
    job.reader = PromptReader::from_whole_files(options.text_paths, tokenizer, prompts);
  } else {
    job.reader = PromptReader::from_texts(options.prompt_texts, tokenizer, prompts);
  }
  job.size.sequences = 0;
  std::int64_t largest = 0;
  const auto measure = [&](const Request& request, std::int64_t sequences) {
    job.size.sequences += sequences;
    const std::int32_t pages = pages_needed(request, prompts.n_positions, session.grid().shards);
    job.size.pages = std::max(job.size.pages, pages);
    job.size.all_pages += sequences * pages;
    const auto length = static_cast<std::int64_t>(request.tokens.size());
    job.size.prompt_tokens += sequences * length;
    job.size.new_tokens += sequences * std::min<std::int64_t>(request.max_new_tokens, prompts.n_positions - length + 1);
    job.size.scored |= request.score_from > 0;
  };
  job.count = job.reader->check([&](const Request& request) {
    session.alive();
    if (!options.output_path.empty()) job.prompts_hash = add_to_hash(job.prompts_hash, request);
    std::optional<std::int64_t> parts;
    if (job.split.count) parts = job.split.count(request);
    const std::int64_t bytes = desk_bytes(request, parts, prompts.n_positions);
    job.size.prompt_bytes += bytes;
    largest = std::max(largest, bytes);
    job.size.remembers_tokens |= request.sampling.repetition_penalty != 1.0;
    if (!parts) return measure(request, request.num_samples);
    if (*parts > 0) measure(job.split.part(request, 0), *parts);
  });
  // At the desk, and those that run once more.
  job.size.prompt_bytes = 2 * std::min(job.size.prompt_bytes, FrontDeskBounds{}.bytes + largest);
  session.catch_interrupts();
}

namespace {

// Keeps when results were written.
class TracedSink final : public ResultSink {
 public:
  TracedSink(std::unique_ptr<ResultSink> sink, TraceBuffer& trace) : sink_(std::move(sink)), trace_(trace) {}
  void write(const Request& request, std::span<const Sample> samples) override {
    TraceEvent event;
    event.activity = Activity::kWrite;
    event.lane = kResultsLane;
    event.microbatch = static_cast<std::uint32_t>(request.index);
    event.start_ns = now_ns();
    sink_->write(request, samples);
    event.duration_ns = now_ns() - event.start_ns;
    trace_.add(event);
  }
  void finish() override { sink_->finish(); }

 private:
  std::unique_ptr<ResultSink> sink_;
  TraceBuffer& trace_;
};

// The results stand already: a disk that is full now costs no more than that they are not known again.
void close_journal(Journal& journal, const std::string& last_words) {
  journal.require_mine();
  try {
    journal.finish(last_words);
  } catch (const OutputError& error) {
    log_warning(fmt::format("the results are complete, but the same command would make them again: {}", error.what()));
  }
}

Scheduler make_scheduler(const Session& session) {
  Scheduler::TokenBytes token_bytes;
  if (const Tokenizer* tokenizer = tokenizer_of(session.model())) {
    token_bytes = [tokenizer](std::int32_t token) { return token_text(*tokenizer, token); };
  }
  return Scheduler(session.scheduler_limits(), std::move(token_bytes));
}

// Requests that a replica has on its way: enough for the next microbatch, few for when it turns out to be slow.
std::int32_t requests_ahead(const Session& session) {
  return std::max(2, session.scheduler_limits().slots / 4);
}

}  // namespace

void run_prompts(PromptJob& job, const Options& options, Session& session, RunWatch& watch, const char* unit,
                 const std::function<std::string()>& last_words) {
  if (job.journal) session.drain_when_interrupted();
  if (TraceBuffer* trace = watch.results()) job.sink = std::make_unique<TracedSink>(std::move(job.sink), *trace);
  watch.begin();
  const auto lead = [&](Leader& leader, const OfficeOptions& office) {
    StatusLine line(!options.output_path.empty() && !options.quiet);
    const auto start = std::chrono::steady_clock::now();
    std::int64_t earlier_tokens = 0;  // the front desk's, while it is there
    job.hooks.on_progress = [&](const Written& written) {
      earlier_tokens = written.found_tokens;
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      line.update(progress_text(
          {written.prompts, job.count, written.tokens, seconds, written.found_prompts, written.found_tokens}, unit));
    };
    FrontDeskBounds bounds;
    bounds.n_positions = session.model().config.n_positions;
    bounds.replicas = session.grid().replicas;
    if (job.journal) job.hooks.on_complete = [&] { close_journal(*job.journal, last_words ? last_words() : ""); };
    FrontDesk desk(*job.reader, *job.sink, job.hooks, job.split, bounds, job.journal.get());
    LeaderHooks hooks;
    hooks.next_request = [&desk] { return interrupt() ? std::nullopt : desk.next_request(); };
    hooks.exhausted = [&desk] { return interrupt() || desk.exhausted(); };
    hooks.on_finished = [&desk](Sample&& sample) { desk.deliver(std::move(sample)); };
    if (job.hooks.on_token) hooks.on_token = [&desk](const Scheduler::TokenEvent& event) { desk.token(event.token); };
    RunMeter* meter = watch.add_meter();
    count_prompts(hooks, meter);
    Scheduler scheduler = make_scheduler(session);
    std::optional<Dealer> dealer;
    if (session.grid().replicas > 1) {
      dealer.emplace(office, session.leaders(), requests_ahead(session), hooks, [] { return interrupt().has_value(); });
      hooks = dealer->hooks();
    }
    attach(hooks, meter);
    const auto stay = [&] {
      leader.keep_alive();
      if (dealer) dealer->service();
    };
    leader.run(scheduler, hooks);
    throw_if_interrupted();
    log_verbose(fmt::format("sequences put back for want of pages: {}; prompt tokens that shared pages held: {}",
                            scheduler.times_put_back(), scheduler.shared_rows()));
    desk.finish(stay);
    watch.set_earlier_tokens(earlier_tokens);
    if (!dealer) return;
    dealer->end(stay);
    log_verbose(fmt::format("samples by replica: {}", fmt::join(dealer->delivered(), ", ")));
  };
  const auto assist = [&](Leader& leader, const OfficeOptions& office) {
    Scheduler scheduler = make_scheduler(session);
    RunMeter* meter = watch.add_meter();
    help(leader, scheduler, office, session.leaders().front(), [meter](LeaderHooks& hooks) { attach(hooks, meter); });
  };
  session.run(lead, assist);
  watch.finish(session);
}

}  // namespace stagecoach
