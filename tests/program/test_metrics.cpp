// Watching a run: --metrics and --trace say what it did, change nothing of it, and are refused before it when their
// files cannot be.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

#include "runtime/json.hpp"
#include "tests/program/mistakes.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

const std::string kModel =
    "--model synthetic:gpt2,n_layer=6,n_embd=96,n_head=3,n_positions=160,vocab_size=90,seed=5,dtype=float32 "
    "--threads 1 ";

double number(const Json& object, const char* key) {
  const Json* value = object.find(key);
  CAPTURE(key);
  REQUIRE(value != nullptr);
  if (const std::int64_t* whole = value->integer()) return static_cast<double>(*whole);
  REQUIRE(value->real() != nullptr);
  return *value->real();
}

// Prompts, and what the run's figures must say of them: rows are fed once each.
struct Work {
  std::string prompts;
  int count = 0, samples = 0, prompt_tokens = 0;
};

Work some_work() {
  Work work;
  for (int i = 0; i < 12; ++i) {
    const int length = 3 + 11 * i % 90, samples = 1 + i % 3;
    work.prompts +=
        fmt::format("{{\"max_new_tokens\": {}, \"num_samples\": {}, \"temperature\": 1, \"tokens\": [", 5 + i, samples);
    for (int t = 0; t < length; ++t) work.prompts += fmt::format("{}{}", t == 0 ? "" : ", ", (7 * i + t * t) % 90);
    work.prompts += "]}\n";
    ++work.count;
    work.samples += samples;
    work.prompt_tokens += length;
  }
  return work;
}

// Of all lines of results.
int tokens_in(const std::string& lines) {
  int tokens = 0;
  for (std::size_t at = 0; at < lines.size();) {
    const std::size_t end = lines.find('\n', at);
    tokens += static_cast<int>(parse_json(lines.substr(at, end - at)).find("tokens")->array()->size());
    at = end + 1;
  }
  return tokens;
}

// The time from the first microbatch to the end of the last is busy, scheduling or idle.
void check_times(const Json& rank, double wall_s, double span_s) {
  const double busy = number(rank, "busy_s"), idle = number(rank, "idle_s"), schedule = number(rank, "schedule_s");
  CHECK(busy > 0);
  CHECK(span_s <= wall_s);
  CHECK(busy + idle + schedule == doctest::Approx(span_s).epsilon(0.001));
  CHECK(number(rank, "bubble") == doctest::Approx(idle / (busy + idle)).epsilon(0.001));
  if (number(rank, "stage") > 0) CHECK(schedule == 0);
}

struct Event {
  std::int64_t place = 0, microbatch = 0;
  double start = 0, end = 0;
  std::int64_t rows = 0, prefill = 0, decode = 0;
};

// By kind; also checks what holds of any trace.
std::map<std::string, std::vector<Event>> events_of(const Json& trace, std::size_t places) {
  const Json::Array& processes = *trace.find("otherData")->find("stages")->array();
  REQUIRE(processes.size() == places);
  for (const Json& process : processes) {
    CHECK(number(process, "dropped_events") == 0);
  }
  std::map<std::string, std::vector<Event>> events;
  std::map<std::pair<double, double>, std::vector<std::pair<double, double>>> lanes;
  for (const Json& json : *trace.find("traceEvents")->array()) {
    if (*json.find("ph")->string() != "X") continue;
    const Json& arguments = *json.find("args");
    const auto whole = [&](const char* key) {
      const Json* value = arguments.find(key);
      return value == nullptr ? std::int64_t{0} : *value->integer();
    };
    const double start = number(json, "ts"), end = start + number(json, "dur");
    CHECK(number(json, "dur") >= 0);
    events[*json.find("name")->string()].push_back({*json.find("pid")->integer(), whole("microbatch"), start, end,
                                                    whole("rows"), whole("prefill_rows"), whole("decode_rows")});
    lanes[{number(json, "pid"), number(json, "tid")}].emplace_back(start, end);
  }
  for (auto& [lane, spans] : lanes) {
    std::ranges::sort(spans);
    for (std::size_t i = 1; i < spans.size(); ++i) CHECK(spans[i - 1].second <= spans[i].first + 0.002);  // rounded
  }
  return events;
}

struct Way {
  int ranks;
  const char* options;
  std::size_t replicas, stages;
};
const Way kWays[] = {{0, "", 1, 1},
                     {0, "--stages 3 --chunk-tokens 16", 1, 3},
                     {2, "--chunk-tokens 16", 1, 2},
                     {3, "--in-flight 5", 1, 3},
                     {0, "--replicas 2 --stages 2", 2, 2},
                     {4, "--replicas 2", 2, 2}};

}  // namespace

TEST_CASE("figures and events of a run agree with its results, which are the same without them") {
  const ScratchFolder folder;
  const Work work = some_work();
  write_file(folder / "p.jsonl", work.prompts);
  for (const Way& way : kWays) {
    CAPTURE(way.ranks);
    CAPTURE(way.options);
    const std::string common =
        fmt::format("generate {}{} --logprobs --fresh --prompts {} --output ", kModel, way.options, folder / "p.jsonl");
    const Ended plain = run_program(way.ranks, common + (folder / "plain.jsonl"));
    CHECK(plain.status == 0);
    const Ended ended = run_program(way.ranks, fmt::format("{}{} --metrics {} --trace {}", common, folder / "o.jsonl",
                                                           folder / "m.json", folder / "t.json"));
    INFO(ended.err);
    REQUIRE(ended.status == 0);
    CHECK(ended.err == "");
    const std::string results = read_file(folder / "o.jsonl");
    CHECK(results == read_file(folder / "plain.jsonl"));
    CHECK(!std::filesystem::exists(folder / "m.json.partial"));
    CHECK(!std::filesystem::exists(folder / "t.json.partial"));

    const Json metrics = parse_json(read_file(folder / "m.json"));
    const int tokens = tokens_in(results);
    const double wall_s = number(metrics, "wall_s");
    CHECK(*metrics.find("command")->string() == "generate");
    CHECK(number(metrics, "replicas") == way.replicas);
    CHECK(number(metrics, "stages") == way.stages);
    CHECK(number(metrics, "prompts") == work.count);
    CHECK(number(metrics, "samples") == work.samples);
    CHECK(number(metrics, "prompt_tokens") == work.prompt_tokens);
    CHECK(number(metrics, "generated_tokens") == tokens);
    CHECK(number(metrics, "tokens_per_s") == doctest::Approx(tokens / wall_s).epsilon(0.001));
    const double first_tokens = number(*metrics.find("ttft_s"), "count");  // of each replica that had samples of it
    CHECK(first_tokens >= work.count);
    CHECK(first_tokens <= static_cast<double>(way.replicas) * work.count);
    CHECK(number(*metrics.find("itl_s"), "count") == tokens - work.samples);
    for (const char* latency : {"ttft_s", "itl_s"}) {
      const Json& l = *metrics.find(latency);
      CHECK(number(l, "p50") > 0);
      CHECK(number(l, "p50") <= number(l, "p90"));
      CHECK(number(l, "p90") <= number(l, "p99"));
      CHECK(number(l, "p99") <= number(l, "max"));
      CHECK(number(l, "max") <= wall_s);
    }
    const Json::Array& ranks = *metrics.find("ranks")->array();
    REQUIRE(ranks.size() == way.replicas * way.stages);
    for (std::size_t place = 0; place < ranks.size(); ++place) {
      CAPTURE(place);
      const std::size_t s = place % way.stages;
      const Json& rank = ranks[place];
      const Json& first = ranks[place - s];
      CHECK(number(rank, "stage") == s);
      CHECK(number(rank, "replica") == place / way.stages);
      CHECK(number(rank, "rank") == (way.ranks == 0 ? 0 : place));
      CHECK(!rank.find("host")->string()->empty());
      CHECK(rank.find("device")->string()->starts_with("cpu"));
      CHECK(number(rank, "microbatches") == number(first, "microbatches"));
      CHECK(number(rank, "rows") == number(first, "rows"));
      CHECK(number(rank, "bytes_sent") == (s + 1 < way.stages ? number(rank, "rows") * 96 * 4 : 0));
      CHECK(number(rank, "peak_bytes") >= number(rank, "weights_bytes") + number(rank, "kv_bytes"));
    }

    const Json trace = parse_json(read_file(folder / "t.json"));
    auto events = events_of(trace, ranks.size());
    CHECK(events["write"].size() == static_cast<std::size_t>(work.count));
    std::map<std::int64_t, std::map<std::int64_t, Event>> computed, sent;  // place -> microbatch
    for (const Event& event : events["compute"]) CHECK(computed[event.place].emplace(event.microbatch, event).second);
    for (const Event& event : events["send"]) CHECK(sent[event.place].emplace(event.microbatch, event).second);
    double rows = 0, decoded = 0;
    for (std::size_t place = 0; place < ranks.size(); place += way.stages) {
      for (const auto& [id, event] : computed[static_cast<std::int64_t>(place)]) {
        rows += static_cast<double>(event.rows);
        decoded += static_cast<double>(event.decode);
        CHECK(event.rows == event.prefill + event.decode);
      }
      rows -= number(ranks[place], "rows");
    }
    CHECK(rows == 0);
    CHECK(decoded == tokens - work.samples);  // a sample's last token is not fed
    CHECK(computed.size() <= ranks.size());   // a replica may have come too late for anything
    double tolerance = 1.0;                   // microseconds
    for (const Json& process : *trace.find("otherData")->find("stages")->array()) {
      tolerance += 2 * number(process, "clock_error_us");
      CHECK(number(process, "clock_error_us") < 20000);
    }
    for (std::size_t place = 0; place < ranks.size(); ++place) {
      CAPTURE(place);
      auto& mine = computed[static_cast<std::int64_t>(place)];
      CHECK(static_cast<double>(mine.size()) == number(ranks[place], "microbatches"));
      if (way.replicas == 1) REQUIRE(!mine.empty());
      if (mine.empty()) continue;
      double busy_us = 0, first_us = mine.begin()->second.start, last_us = 0;
      for (const auto& [id, event] : mine) {
        busy_us += event.end - event.start;
        first_us = std::min(first_us, event.start);
        last_us = std::max(last_us, event.end);
        if (place % way.stages == 0) continue;
        const auto& before = computed[static_cast<std::int64_t>(place) - 1];
        REQUIRE(before.contains(id));
        CHECK(before.at(id).rows == event.rows);
        REQUIRE(sent[static_cast<std::int64_t>(place) - 1].contains(id));
        CHECK(sent[static_cast<std::int64_t>(place) - 1].at(id).start <= event.start + tolerance);
      }
      CHECK(busy_us * 1e-6 == doctest::Approx(number(ranks[place], "busy_s")).epsilon(0.01));
      check_times(ranks[place], wall_s, 1e-6 * (last_us - first_us));
    }
  }
}

TEST_CASE("scoring and measuring are watched as well, with either file alone") {
  const ScratchFolder folder;
  std::string texts;
  for (int i = 0; i < 5; ++i) {
    texts += "{\"tokens\": [1";
    for (int t = 0; t < 20 + 60 * i; ++t) texts += fmt::format(", {}", (t + i) % 90);
    texts += "]}\n";
  }
  write_file(folder / "p.jsonl", texts);
  const std::string score = "score " + kModel + "--fresh --prompts " + (folder / "p.jsonl") + " --output ";
  for (const int ranks : {0, 2}) {
    CAPTURE(ranks);
    const Ended plain = run_program(ranks, score + (folder / "plain.jsonl"));
    const Ended ended = run_program(ranks, score + (folder / "o.jsonl") + " --metrics " + (folder / "m.json"));
    INFO(ended.err);
    CHECK(ended.status == 0);
    CHECK(ended.out == plain.out);
    CHECK(read_file(folder / "o.jsonl") == read_file(folder / "plain.jsonl"));
    const Json metrics = parse_json(read_file(folder / "m.json"));
    CHECK(*metrics.find("command")->string() == "score");
    CHECK(number(metrics, "generated_tokens") == 0);
    CHECK(number(metrics, "scored_tokens") == tokens_in(read_file(folder / "o.jsonl")) - 5);
    CHECK(metrics.find("itl_s")->find("p50")->is_null());

    const Ended bench =
        run_program(ranks, "bench " + kModel + "--prompt-tokens 8 --new-tokens 5 --batch 3 --repeat 2 --trace " +
                               (folder / "t.json"));
    INFO(bench.err);
    CHECK(bench.status == 0);
    const auto events = events_of(parse_json(read_file(folder / "t.json")), ranks == 0 ? 1 : 2);
    std::int64_t prefill = 0, decode = 0;
    for (const Event& event : events.at("compute")) {
      if (event.place != 0) continue;
      prefill += event.prefill;
      decode += event.decode;
    }
    CHECK(prefill == 3 * 3 * 8);  // the repeat that does not count, too
    CHECK(decode == 3 * 3 * 4);
    std::filesystem::remove(folder / "m.json");
    CHECK(run_program(ranks, "bench " + kModel + "--prompt-tokens 8 --new-tokens 5 --batch 3 --repeat 2 --metrics " +
                                 (folder / "m.json"))
              .status == 0);
    CHECK(number(parse_json(read_file(folder / "m.json")), "generated_tokens") == 3 * 3 * 5);
  }
}

TEST_CASE("GPUs that wait for rows by themselves are watched alike") {
  const ScratchFolder folder;
  write_file(folder / "p.jsonl", "{\"tokens\": [1, 2, 3]}\n{\"tokens\": [7, 7, 60, 4, 11, 80, 2]}\n");
  for (const char* transport : {"nccl", "mpi"}) {
    CAPTURE(transport);
    const Ended ended = run_emulated(
        3,
        fmt::format("generate --model synthetic:gpt2,n_layer=4,n_embd=64,n_head=2,n_positions=128,vocab_size=90,seed=5 "
                    "--ignore-eos --max-new-tokens 6 --transport {} --prompts {} --metrics {} --trace {}",
                    transport, folder / "p.jsonl", folder / "m.json", folder / "t.json"),
        120, "devices=4");
    INFO(ended.err);
    REQUIRE(ended.status == 0);
    auto events = events_of(parse_json(read_file(folder / "t.json")), 3);
    const Json metrics = parse_json(read_file(folder / "m.json"));
    const Json::Array& ranks = *metrics.find("ranks")->array();
    REQUIRE(ranks.size() == 3);
    const auto microbatches = static_cast<std::size_t>(number(ranks[0], "microbatches"));
    CHECK(events["compute"].size() == 3 * microbatches);
    CHECK(events["send"].size() == 2 * microbatches);
    CHECK(events["receive"].size() == 2 * microbatches);
    for (std::size_t s = 0; s < 3; ++s) {
      CAPTURE(s);
      CHECK(*ranks[s].find("device")->string() == fmt::format("cuda (Emulated device, device {})", s));
      double first_us = 1e300, last_us = 0;
      for (const Event& event : events["compute"]) {
        if (event.place != static_cast<std::int64_t>(s)) continue;
        first_us = std::min(first_us, event.start);
        last_us = std::max(last_us, event.end);
      }
      check_times(ranks[s], number(metrics, "wall_s"), 1e-6 * (last_us - first_us));
    }
  }
}

TEST_CASE("a run that goes on counts what it did itself") {
  const ScratchFolder folder;
  const Work work = some_work();
  write_file(folder / "p.jsonl", work.prompts);
  const std::string common = "generate " + kModel + "--prompts " + (folder / "p.jsonl") + " --output " +
                             (folder / "o.jsonl") + " --metrics " + (folder / "m.json");
  CHECK(run_program(0, common).status == 0);
  const std::string results = read_file(folder / "o.jsonl"), figures = read_file(folder / "m.json");
  const Ended again = run_program(2, common);  // all is done: nothing ran, nothing to say
  CHECK(again.status == 0);
  CHECK(read_file(folder / "m.json") == figures);
  CHECK(read_file(folder / "o.jsonl") == results);
}

TEST_CASE("a file that cannot be made is a mistake, before anything runs; an older one stays until the end") {
  const ScratchFolder folder;
  write_file(folder / "p.jsonl", "{\"tokens\": [1, 2], \"max_new_tokens\": 3}\n");
  std::filesystem::create_directory(folder / "folder");
  const std::string generate = "generate --model " + kTiny + " --prompts " + (folder / "p.jsonl") + " --output " +
                               (folder / "o.jsonl") + " --metrics ";
  expect({generate + "/does/not/exist/m.json", 2, "--metrics: /does/not/exist/m.json"});
  expect({generate + (folder / "folder"), 2, "is not a plain file"});
  expect({generate + (folder / "m.json") + " --trace /proc/t.json", 2, "--trace: /proc/t.json"});
  expect(
      {"score --model " + kTiny + " --prompts " + (folder / "p.jsonl") + " --trace /does/not/exist/t", 2, "--trace:"},
      Where::kMany);
  expect({"bench --model " + kTiny + " --prompt-tokens 3 --new-tokens 2 --metrics /does/not/exist/m", 2, "--metrics:"},
         Where::kMany);
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) names.insert(entry.path().filename());
  CHECK(names == std::set<std::string>{"folder", "p.jsonl"});  // no results, no journal, nothing partial

  // What fails in the middle leaves an older file as it is.
  write_file(folder / "m.json", "older");
  const Ended failed = run_program(0, "generate --model " + kTiny + " --prompts " + (folder / "p.jsonl") +
                                          " --metrics " + (folder / "m.json") + " >/dev/full");
  CHECK(failed.status == 1);
  CHECK(read_file(folder / "m.json") == "older");
  CHECK(!std::filesystem::exists(folder / "m.json.partial"));
}

TEST_CASE("a disk too small for the trace: status 1, and the results are there") {
  const ScratchFolder folder;
  const SmallDisk small(folder / "disk", 16);
  if (!small.mounted()) return;
  write_file(folder / "p.jsonl",
             "{\"tokens\": [1, 2], \"max_new_tokens\": 35, \"num_samples\": 300, \"temperature\": 1}\n");
  const std::string generate = "generate --ignore-eos --fresh --model " + kTiny + " --prompts " + (folder / "p.jsonl") +
                               " --output " + (folder / "o.jsonl");
  CHECK(run_program(0, generate).status == 0);
  const std::string results = read_file(folder / "o.jsonl");
  std::filesystem::remove(folder / "o.jsonl");
  expect({generate + " --trace " + (folder / "disk/t.json"), 1, "No space left on device"});
  CHECK(read_file(folder / "o.jsonl") == results);
  CHECK(std::filesystem::is_empty(folder / "disk"));
}
