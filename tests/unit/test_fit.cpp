// What fits where: as much as there is room for and not a page more, and ways out that are none by luck.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <limits>
#include <random>

#include "kernels/backend.hpp"
#include "kernels/host_memory.hpp"
#include "launch/fit.hpp"
#include "launch/machine.hpp"
#include "launch/world.hpp"
#include "runtime/device_layout.hpp"
#include "tests/rounds.hpp"

using namespace stagecoach;

namespace {

constexpr std::int64_t kMiB = 1 << 20;
using Wishes = std::vector<std::optional<std::int64_t>>;

ModelConfig xl(std::int32_t n_positions) {
  ModelConfig model;
  model.n_layer = 48;
  model.n_head = 25;
  model.n_embd = 1600;
  model.n_inner = 6400;
  model.n_positions = n_positions;
  return model;
}

FitRequest request_of(const ModelConfig& model, std::int32_t stages, std::int64_t available, std::int64_t process) {
  FitRequest request;
  request.plan.model = model;
  request.plan.stages = even_split(model, stages);
  request.plan.in_flight = stages;
  request.dtype = DType::kFloat16;
  request.kv_dtype = DType::kFloat16;
  for (std::int32_t s = 0; s < stages; ++s) {
    StageRoom room;
    room.available_bytes = room.budget_bytes = available;
    room.process_bytes = process;
    room.pot = s;
    request.rooms.push_back(room);
  }
  return request;
}

// By the byte model itself, for stages with a pot each.
bool fits_with(const FitRequest& r, std::int32_t slots, std::int32_t chunk, std::int64_t pages) {
  for (std::size_t s = 0; s < r.rooms.size(); ++s) {
    const auto cpu = cpu_layout(r.rooms[s].threads);
    const DeviceLayout layout = device_layout(*cpu, r.plan.model, r.dtype, r.kv_dtype);
    const StageWork work{chunk + slots, static_cast<std::int32_t>(pages), 2 * slots, r.plan.in_flight,
                         r.plan.stage_count()};
    const StageBytes bytes = stage_bytes(r.plan.model, r.plan.stages[s].blocks, layout, work);
    if (bytes.device() + r.rooms[s].process_bytes > r.rooms[s].available_bytes) return false;
  }
  return true;
}

std::string refusal_of(const FitRequest& request) {
  try {
    fit(request);
  } catch (const FitError& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("what is free is divided: wishes first, in proportion where it is short, the rest equally") {
  using Parts = std::vector<std::int64_t>;
  CHECK(divide(1000, 0.9, Wishes{{}}) == Parts{900});
  CHECK(divide(1000, 0.9, Wishes{{}, {}, {}}) == Parts{300, 300, 300});
  CHECK(divide(1000, 0.5, Wishes{600, {}, {}}) == Parts{600, 100, 100});
  CHECK(divide(1000, 0.9, Wishes{400, 600}) == Parts{400, 600});
  CHECK(divide(1000, 0.9, Wishes{1000, 3000, {}}) == Parts{250, 750, 0});
  CHECK(divide(0, 0.9, Wishes{10, {}}) == Parts{0, 0});
  const std::int64_t most = std::numeric_limits<std::int64_t>::max();
  const Parts halves = divide(1000, 0.9, Wishes{most, most});
  CHECK(halves[0] == halves[1]);
  CHECK(halves[0] + halves[1] <= 1000);
  CHECK(divide(1000, 0.9, Wishes{}).empty());
}

TEST_CASE("as many pages and sequences as there is room for, at least one of the largest request") {
  const unsigned seed = std::random_device{}();
  INFO("seed " << seed);
  std::mt19937 random(seed);
  int fitting = 0;
  int refused = 0;
  for (int round = 0; round < 120; ++round) {
    ModelConfig model;
    model.n_layer = 1 + static_cast<std::int32_t>(random() % 12);
    model.n_head = 4;
    model.n_embd = 64;
    model.n_inner = 256;
    model.n_positions = 4096;
    model.vocab_size = 5000;
    const auto stages = 1 + static_cast<std::int32_t>(random() % static_cast<unsigned>(std::min(model.n_layer, 4)));
    FitRequest request = request_of(model, stages, 0, 5 * kMiB);
    for (StageRoom& room : request.rooms) room.available_bytes = (8 + static_cast<std::int64_t>(random() % 40)) * kMiB;
    request.work.pages = 1 + static_cast<std::int32_t>(random() % 64);
    request.work.sequences = 100;
    request.most_slots = 1 + static_cast<std::int32_t>(random() % 64);
    request.chunks_may_shrink = random() % 2 == 0;
    const std::string refusal = refusal_of(request);
    const std::int32_t smallest = request.chunks_may_shrink ? 32 : request.plan.chunk_tokens;
    if (!refusal.empty()) {
      ++refused;
      // Bookkeeping is not in the byte model, but small.
      FitRequest less = request;
      for (StageRoom& room : less.rooms) room.available_bytes -= 2 * kMiB;
      CHECK_FALSE(fits_with(less, 1, smallest, request.work.pages));
      CHECK(refusal.starts_with("does not fit in memory: stage "));
      continue;
    }
    ++fitting;
    const Fit found = fit(request);
    CHECK(found.pages >= request.work.pages);
    CHECK(found.pages <= request.work.pages * found.slots);
    CHECK(found.chunk_tokens >= smallest);
    CHECK(fits_with(request, found.slots, found.chunk_tokens, found.pages));
    REQUIRE(found.needs.size() == request.rooms.size());
    std::int64_t tightest = std::numeric_limits<std::int64_t>::max();
    std::int64_t page = 0;
    for (std::size_t s = 0; s < found.needs.size(); ++s) {
      const std::int64_t left = request.rooms[s].available_bytes - found.needs[s].total();
      CHECK(left >= 0);
      tightest = std::min(tightest, left);
      page = std::max(page, found.needs[s].bytes.kv / found.pages);
    }
    if (found.pages < request.work.pages * found.slots) CHECK(tightest < page + 1000);  // not a page more
  }
  CHECK(fitting > 0);
  CHECK(refused > 0);
}

TEST_CASE("a refusal names what is needed and had, and its ways out are true") {
  // 16-bit GPT-2 XL with a prompt of 16,000 tokens: 3 GB of weights and 5 GB of keys and values.
  FitRequest request = request_of(xl(16384), 1, std::int64_t{4} << 30, 40 * kMiB);
  request.work.pages = 251;
  request.most_slots = 1;
  const std::clock_t start = std::clock();
  const std::string refusal = refusal_of(request);
  CHECK(std::clock() - start < 2 * CLOCKS_PER_SEC);
  INFO(refusal);
  CHECK(refusal.find("stage 0 (blocks 0 to 47) needs 7.6 GiB (weights 2.9 GiB, KV cache 4.6 GiB, workspace") !=
        std::string::npos);
  CHECK(refusal.find("process 40.1 MiB), available 4.0 GiB; KV cache for one sequence of 16064 tokens.") !=
        std::string::npos);
  const std::size_t ways = refusal.find("Would fit: ");
  REQUIRE(ways != std::string::npos);
  int stages = 0;
  REQUIRE(std::sscanf(refusal.c_str() + ways, "Would fit: %d stages", &stages) == 1);
  CHECK(stages > 1);
  CHECK(stages <= 4);
  const auto with = [&](std::int32_t count, std::int32_t pages) {
    FitRequest other = request_of(xl(16384), count, std::int64_t{4} << 30, 40 * kMiB);
    other.work.pages = pages;
    return refusal_of(other).empty();
  };
  CHECK(with(stages, 251));
  CHECK_FALSE(with(stages - 1, 251));
  int tokens = 0;
  const std::size_t shorter = refusal.find("sequences of at most ");
  REQUIRE(shorter != std::string::npos);
  REQUIRE(std::sscanf(refusal.c_str() + shorter, "sequences of at most %d tokens", &tokens) == 1);
  CHECK(with(1, tokens / kPagePositions));
  CHECK_FALSE(with(1, tokens / kPagePositions + 1));
  CHECK(std::count(refusal.begin(), refusal.end(), '\n') == 0);
}

TEST_CASE("a dtype is offered where it is enough, the one that rounds least") {
  FitRequest request = request_of(xl(16384), 1, std::int64_t{12} << 30, 40 * kMiB);
  request.dtype = DType::kFloat32;
  request.kv_dtype = DType::kFloat32;
  request.work.pages = 251;
  CHECK(refusal_of(request).find(", or --kv-dtype float16") != std::string::npos);  // 5.9 + 4.6 GiB
  for (StageRoom& room : request.rooms) room.available_bytes = std::int64_t{8} << 30;
  CHECK(refusal_of(request).find(", or --dtype float16 --kv-dtype float16") != std::string::npos);
  for (StageRoom& room : request.rooms) room.available_bytes = std::int64_t{7} << 30;
  CHECK(refusal_of(request).find(", or --dtype int8 --kv-dtype float16") != std::string::npos);
  for (StageRoom& room : request.rooms) room.available_bytes = 30 * kMiB;  // less than the process
  CHECK(refusal_of(request).find("Needs more memory, or more ranks") != std::string::npos);
}

TEST_CASE("stages with different budgets, and stages that share") {
  FitRequest request = request_of(xl(1024), 3, std::int64_t{2} << 30, 40 * kMiB);
  request.work.pages = 16;
  CHECK_NOTHROW(fit(request));
  request.rooms[1].available_bytes = 500 * kMiB;
  request.rooms[1].budget_bytes = std::int64_t{1} << 30;
  const std::string one = refusal_of(request);
  INFO(one);
  CHECK(one.starts_with("does not fit in memory: stage 1 (blocks 16 to 31) needs "));
  CHECK(one.find("available 500.0 MiB of a budget of 1.0 GiB: there is no more") != std::string::npos);
  CHECK(one.find("stage 0") == std::string::npos);
  for (StageRoom& room : request.rooms) {  // all together in 2 GiB
    room.available_bytes = std::int64_t{2} << 30;
    room.budget_bytes = 0;
    room.pot = 0;
  }
  const std::string together = refusal_of(request);
  INFO(together);
  CHECK(together.find("and the others beside it") != std::string::npos);
  CHECK(together.find("stages with as much each") == std::string::npos);  // no help: they share
  for (StageRoom& room : request.rooms) room.available_bytes = std::int64_t{5} << 30;
  CHECK_NOTHROW(fit(request));
}

TEST_CASE("models of very many blocks are refused as soon") {
  ModelConfig model = xl(1024);
  model.n_layer = 200 * test::rounds(5);
  FitRequest request = request_of(model, 40, 200 * kMiB * test::rounds(5), 40 * kMiB);
  request.work.pages = 16;
  request.most_slots = 1280;
  request.chunks_may_shrink = true;
  const std::clock_t start = std::clock();
  const std::string refusal = refusal_of(request);
  INFO(refusal);
  CHECK(std::clock() - start < (test::kSanitized ? 40 : 10) * CLOCKS_PER_SEC);
  CHECK(refusal.find("; and 36 more") != std::string::npos);
}

TEST_CASE("the process's memory is what the system says") {
  const ProcessMemory before = process_memory();
  CHECK(before.peak_resident_bytes > kMiB);
  CHECK(before.bytes() >= before.data_bytes);
  HostMemory memory;
  const Buffer touched = memory.allocate(64 * kMiB);
  std::memset(touched.data(), 1, touched.bytes());
  const ProcessMemory after = process_memory();
  CHECK(after.data_bytes >= before.data_bytes + 60 * kMiB);
  CHECK(after.peak_resident_bytes >= 60 * kMiB);
  CHECK(available_memory_bytes() > 0);
}
