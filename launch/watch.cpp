#include "launch/watch.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "launch/clocks.hpp"
#include "runtime/results.hpp"
#include "runtime/wire.hpp"

namespace stagecoach {
namespace {

constexpr std::int64_t kResultsEvents = 65536;

void open_file(std::optional<OutputFile>& file, const std::string& path, const char* option) {
  if (path.empty()) return;
  try {
    file.emplace(path);
  } catch (const OutputError& error) {
    throw UsageError(fmt::format("{}: {}", option, error.what()));
  }
}

std::array<std::int64_t, 10> numbers_of(const StageReport& r) {
  return {r.times.busy_ns, r.times.schedule_ns, r.times.idle_ns, r.microbatches, r.rows,
          r.bytes_sent, r.shard_bytes_sent, r.weight_bytes, r.kv_bytes, r.peak_bytes};
}

StageReport report_of(wire::Reader& in) {
  StageReport r;
  for (std::int64_t* number : {&r.times.busy_ns, &r.times.schedule_ns, &r.times.idle_ns, &r.microbatches, &r.rows,
                               &r.bytes_sent, &r.shard_bytes_sent, &r.weight_bytes, &r.kv_bytes, &r.peak_bytes}) {
    *number = in.i64();
  }
  return r;
}

const char* name_of(Command command) {
  if (command == Command::kScore) return "score";
  return command == Command::kBench ? "bench" : "generate";
}

}  // namespace

void RunWatch::open() {
  open_file(metrics_file_, options_.metrics_path, "--metrics");
  open_file(trace_file_, options_.trace_path, "--trace");
  if (trace_file_) results_.emplace(kResultsEvents);
}

void RunWatch::begin() {
  if (!options_.trace_path.empty()) first_ = compare_clocks(world_, options_.timeout_s);
  begun_ns_ = now_ns();
}

void attach(LeaderHooks& hooks, RunMeter* meter) {
  if (meter == nullptr) return;
  hooks.next_request = [meter, next = std::move(hooks.next_request)] {
    std::optional<Request> request = next();
    if (request) meter->taken(*request, now_ns());
    return request;
  };
  hooks.on_token = [meter, next = std::move(hooks.on_token)](const Scheduler::TokenEvent& event) {
    meter->token(event, now_ns());
    if (next) next(event);
  };
  hooks.on_finished = [meter, next = std::move(hooks.on_finished)](Sample&& sample) {
    meter->finished(sample);
    next(std::move(sample));
  };
}

void count_prompts(LeaderHooks& hooks, RunMeter* meter) {
  if (meter == nullptr) return;
  hooks.next_request = [meter, next = std::move(hooks.next_request)] {
    std::optional<Request> request = next();
    if (request) meter->given(*request);
    return request;
  };
}

RunMeter* RunWatch::add_meter() {
  if (options_.metrics_path.empty()) return nullptr;
  const std::scoped_lock lock(mutex_);
  return &meters_.emplace_back();
}

// Of all ranks.
RunMeter RunWatch::gather_meters() const {
  RunMeter mine;
  for (const RunMeter& meter : meters_) mine.merge(meter);
  wire::Writer out;
  mine.put(out);
  RunMeter all;
  for (const std::vector<std::byte>& bytes : world_.from_all(out.bytes())) {
    wire::Reader in(bytes);
    all.merge(RunMeter::read(in));
    in.end();
  }
  return all;
}

void RunWatch::finish(const Session& session) {
  if (options_.metrics_path.empty() && options_.trace_path.empty()) return;
  const double wall_s = 1e-9 * static_cast<double>(now_ns() - begun_ns_);
  const std::vector<Stage> stages = gather(session);
  if (!options_.metrics_path.empty()) {
    const RunMeter meter = gather_meters();
    if (metrics_file_) write_metrics(session, meter, stages, wall_s);
  }
  if (!options_.trace_path.empty()) write_trace(session, stages);
}

// Of all ranks, on all ranks, in their order.
std::vector<RunWatch::Stage> RunWatch::gather(const Session& session) const {
  wire::Writer out;
  const std::vector<Session::StageRecord> records = session.records();
  out.put_count(records.size());
  for (const Session::StageRecord& record : records) {
    out.put(record.place);
    out.put(std::string_view(record.device));
    out.put(std::string_view(world_.host()));
    for (const std::int64_t number : numbers_of(record.report)) out.put(number);
    out.put(static_cast<std::int64_t>(record.trace == nullptr ? 0 : record.trace->pieces()));
    out.put(record.trace == nullptr ? std::int64_t{0} : record.trace->dropped());
  }
  std::vector<Stage> stages;
  std::int32_t rank = 0;
  for (const std::vector<std::byte>& bytes : world_.from_all(out.bytes())) {
    wire::Reader in(bytes);
    for (std::size_t left = in.count(1); left > 0; --left) {
      Stage& stage = stages.emplace_back();
      stage.rank = rank;
      stage.figures.rank = world_.launched_rank(rank);
      const std::int32_t place = in.i32();
      stage.figures.replica = session.grid().replica(place);
      stage.figures.stage = session.grid().stage(place);
      stage.figures.shard = session.grid().shard(place);
      stage.figures.device = in.text();
      stage.figures.host = in.text();
      stage.figures.report = report_of(in);
      stage.pieces = in.i64();
      stage.dropped = in.i64();
    }
    in.end();
    ++rank;
  }
  return stages;
}

void RunWatch::write_metrics(const Session& session, const RunMeter& meter, const std::vector<Stage>& stages,
                             double wall_s) {
  RunFigures run;
  run.command = name_of(options_.command);
  run.model = session.model().name;
  run.dtype = stagecoach::name_of(session.dtype());
  run.kv_dtype = stagecoach::name_of(session.kv_dtype());
  run.replicas = session.grid().replicas;
  run.stages = session.plan().stage_count();
  run.shards = session.grid().shards;
  run.wall_s = wall_s;
  run.earlier_tokens = earlier_tokens_;
  std::vector<StageFigures> figures;
  for (const Stage& stage : stages) figures.push_back(stage.figures);
  metrics_file_->write(metrics_json(run, meter, figures));
  metrics_file_->commit();
}

TraceProcess RunWatch::process_of(const Session& session, const Stage& stage, const std::vector<ClockOffset>& last,
                                  std::int64_t last_ns) const {
  TraceProcess process;
  process.rank = stage.figures.rank;
  if (session.grid().replicas > 1) process.replica = stage.figures.replica;
  process.stage = stage.figures.stage;
  if (session.grid().shards > 1) process.shard = stage.figures.shard;
  process.host = stage.figures.host;
  process.dropped = stage.dropped;
  const auto rank = static_cast<std::size_t>(stage.rank);
  process.clock = ClockLine::through(first_[rank], begun_ns_, last[rank], last_ns);
  return process;
}

// Piece by piece: rank 0 writes each before the next one comes.
void RunWatch::write_trace(const Session& session, const std::vector<Stage>& stages) {
  const std::vector<ClockOffset> last = compare_clocks(world_, options_.timeout_s);
  const std::int64_t last_ns = now_ns();
  const std::vector<Session::StageRecord> mine = session.records();
  std::optional<TraceFile> out;
  if (trace_file_) out.emplace(*trace_file_, begun_ns_);
  std::size_t next_of_mine = 0;
  for (const Stage& stage : stages) {
    const std::int32_t rank = stage.rank;
    const TraceBuffer* trace = rank == world_.rank() ? mine[next_of_mine++].trace : nullptr;
    if (out) {
      TraceProcess process = process_of(session, stage, last, last_ns);
      const bool leads = rank == 0 && stage.figures.replica == 0 && stage.figures.stage == 0 && stage.figures.shard == 0;
      if (leads) process.dropped += results_->dropped();
      out->begin(process);
      for (std::size_t i = 0; leads && i < results_->pieces(); ++i) out->write(results_->piece(i));
    }
    for (std::int64_t i = 0; i < stage.pieces; ++i) {
      world_.alive();
      std::span<const TraceEvent> events;
      if (trace != nullptr) events = trace->piece(static_cast<std::size_t>(i));
      if (rank == 0) {
        if (out) out->write(events);
        continue;
      }
      const std::vector<std::byte> bytes = world_.from_all(std::as_bytes(events)).at(static_cast<std::size_t>(rank));
      if (!out) continue;
      std::vector<TraceEvent> received(bytes.size() / sizeof(TraceEvent));
      std::memcpy(received.data(), bytes.data(), received.size() * sizeof(TraceEvent));
      out->write(received);
    }
  }
  if (!out) return;
  out->end();
  trace_file_->commit();
}

}  // namespace stagecoach
