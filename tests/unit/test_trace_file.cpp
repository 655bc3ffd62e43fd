#include <doctest/doctest.h>
#include <fmt/format.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>

#include "runtime/json.hpp"
#include "runtime/trace_file.hpp"

using namespace stagecoach;

namespace {

struct ScratchFile {
  std::string path =
      (std::filesystem::temp_directory_path() / fmt::format("stagecoach-trace-{}.json", ::getpid())).string();
  ~ScratchFile() { std::filesystem::remove(path); }
  std::string read() const {
    std::ifstream file(path);
    return {std::istreambuf_iterator<char>(file), {}};
  }
};

double number(const Json& value) {
  return value.integer() != nullptr ? static_cast<double>(*value.integer()) : *value.real();
}

TraceEvent event_of(Activity activity, std::uint16_t lane, std::int64_t start, std::int64_t duration) {
  TraceEvent event;
  event.activity = activity;
  event.lane = lane;
  event.start_ns = start;
  event.duration_ns = duration;
  event.microbatch = 9;
  event.rows = 5;
  event.prefill_rows = 2;
  return event;
}

}  // namespace

TEST_CASE("a trace file is JSON with every event by rank 0's clock, names, and what is missing") {
  const ScratchFile scratch;
  OutputFile file(scratch.path);
  TraceFile trace(file, 1'000'000);
  trace.begin({0, {}, 0, {}, "a \"host\"", 0, {}});
  trace.write(std::vector{event_of(Activity::kWait, kLoopLane, 999'000, 1'500),
                          event_of(Activity::kSchedule, kLoopLane, 1'000'500, 500),
                          event_of(Activity::kCompute, kLoopLane, 1'001'000, 7'000'123),
                          event_of(Activity::kSend, kFirstBufferLane + 1, 8'001'123, 0),
                          event_of(Activity::kWrite, kResultsLane, 8'001'123, 1)});
  // 300 us ahead at the beginning, 500 us at the end 10 ms later.
  trace.begin({3, 2, 1, 5, "b", 42, {1'300'000, 11'500'000, 300'000, 500'000, 1'728}});
  trace.write(std::vector{event_of(Activity::kReceive, kFirstBufferLane, 1'300'000, 10'200'000)});
  trace.end();
  file.commit();

  const Json root = parse_json(scratch.read());
  std::map<std::string, const Json*> named;
  std::map<std::string, int> threads;
  for (const Json& event : *root.find("traceEvents")->array()) {
    const std::string& name = *event.find("name")->string();
    if (*event.find("ph")->string() == "X") {
      named[name] = &event;
    } else if (name == "process_name") {
      ++threads[*event.find("args")->find("name")->string()];
    } else if (name == "thread_name") {
      ++threads[fmt::format("{} {}", *event.find("pid")->integer(), *event.find("args")->find("name")->string())];
    }
  }
  CHECK(threads == std::map<std::string, int>{{"rank 0, stage 0, a \"host\"", 1},
                                              {"rank 3, replica 2, stage 1, shard 5, b", 1},
                                              {"0 stage", 1},
                                              {"0 buffer 1", 1},
                                              {"0 results", 1},
                                              {"1 buffer 0", 1}});
  const auto at = [&](const char* name, const char* key) {
    CAPTURE(name);
    REQUIRE(named.contains(name));
    return number(*named[name]->find(key));
  };
  const auto argument = [&](const char* name, const char* key) {
    return number(*named[name]->find("args")->find(key));
  };
  CHECK(at("wait", "ts") == -1.0);
  CHECK(at("wait", "dur") == 1.5);
  CHECK(at("schedule", "ts") == 0.5);
  CHECK(at("compute", "ts") == 1.0);
  CHECK(at("compute", "dur") == 7000.123);
  CHECK(at("compute", "tid") == 0);
  CHECK(argument("compute", "microbatch") == 9);
  CHECK(argument("compute", "rows") == 5);
  CHECK(argument("compute", "prefill_rows") == 2);
  CHECK(argument("compute", "decode_rows") == 3);
  CHECK(argument("send", "rows") == 5);
  CHECK(argument("write", "prompt") == 9);
  CHECK(at("receive", "pid") == 1);
  CHECK(at("receive", "ts") == 0.0);
  CHECK(at("receive", "dur") == 10'000.0);

  const Json::Array& stages = *root.find("otherData")->find("stages")->array();
  REQUIRE(stages.size() == 2);
  CHECK(number(*stages[0].find("dropped_events")) == 0);
  CHECK(number(*stages[1].find("dropped_events")) == 42);
  CHECK(number(*stages[1].find("rank")) == 3);
  CHECK(number(*stages[1].find("clock_error_us")) == 1.728);
}

TEST_CASE("a long trace is written in pieces, and one of nothing is one too") {
  for (const int pieces : {0, 1, 40}) {
    const ScratchFile scratch;
    OutputFile file(scratch.path);
    TraceFile trace(file, 0);
    if (pieces > 0) trace.begin({});
    std::vector<TraceEvent> events(1000, event_of(Activity::kCompute, kLoopLane, 1, 1));
    for (int i = 0; i < pieces; ++i) trace.write(events);
    trace.end();
    file.commit();
    const Json root = parse_json(scratch.read());
    std::size_t count = 0;
    for (const Json& event : *root.find("traceEvents")->array()) count += *event.find("ph")->string() == "X" ? 1 : 0;
    CHECK(count == static_cast<std::size_t>(pieces) * 1000);
  }
}
