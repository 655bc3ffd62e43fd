// What goes wrong on a device: no driver, no device, too little memory, a failure at any call; and mistakes of ours
// that tests must notice.
#include <doctest/doctest.h>

#include <cstring>
#include <vector>

#include "kernels/cuda/pool.hpp"
#include "tests/cuda/cuda_backends.hpp"
#include "tests/cuda_emulation/emulation.hpp"
#include "tests/cuda_emulation/in_child.hpp"
#include "tests/pipeline/harness.hpp"
#include "tests/rounds.hpp"

#include <cuda_runtime.h>

using namespace stagecoach;
using namespace stagecoach::test;
namespace emulation = stagecoach::cuda_emulation;

namespace {

class FreshDevice {
 public:
  explicit FreshDevice(const emulation::Options& options = {}) { emulation::reset(options); }
  ~FreshDevice() { emulation::reset(); }
};

// Two prompts, one longer than a page and cut into chunks, on `stages` stages.
Job small_job() {
  Job job;
  job.model = "synthetic:gpt2,n_layer=2,n_head=2,n_embd=32,n_positions=128,vocab_size=50,dtype=float32,seed=5";
  job.dtype = DType::kFloat16;
  job.kv_dtype = DType::kFloat16;
  for (const std::int32_t length : {70, 3}) {
    Request request;
    request.index = static_cast<std::int64_t>(job.requests.size());
    for (std::int32_t t = 0; t < length; ++t) request.tokens.push_back((7 * t + length) % 50);
    request.max_new_tokens = 6;
    request.ignore_eos = true;
    request.logprobs = true;
    job.requests.push_back(std::move(request));
  }
  return job;
}

Layout small_layout(std::int32_t stages) {
  Layout layout;
  layout.stages = stages == 1 ? std::vector<BlockRange>{{0, 1}} : std::vector<BlockRange>{{0, 0}, {1, 1}};
  layout.chunk_tokens = 20;
  layout.in_flight = 3;
  layout.slots = 2;
  layout.backend = deterministic_cuda_backend;
  return layout;
}

// What a run ends with: "" when all samples are as expected.
std::string outcome(const std::vector<Sample>& expected, std::int32_t stages, bool checking = false) {
  Layout layout = small_layout(stages);
  layout.checking = checking;
  try {
    return difference(expected, run_loopback(small_job(), layout));
  } catch (const DeviceError& e) {
    return std::string("device: ") + e.what();
  } catch (const std::exception& e) {
    return e.what();
  }
}

std::string message_of(const CudaOptions& options) {
  try {
    make_cuda_backend(options);
  } catch (const DeviceError& e) {
    return e.what();
  }
  return "no error";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("no driver, no device, another device, too little memory") {
  {
    const FreshDevice device({.driver = false});
    CHECK(contains(message_of({.pool_bytes = 1 << 20}), "no CUDA device: "));
    CHECK(contains(message_of({.pool_bytes = 1 << 20}), "use --device cpu"));
  }
  {
    const FreshDevice device({.devices = 0});
    CHECK(contains(message_of({.pool_bytes = 1 << 20}), "no CUDA device: "));
  }
  const FreshDevice device({.memory_bytes = std::size_t{16} << 20});
  CHECK(contains(message_of({.device = 3, .pool_bytes = 1 << 20}), "there is no CUDA device 3; this process sees 1"));
  const std::string wanted = message_of({.pool_bytes = std::int64_t{32} << 20});
  CHECK(contains(wanted, "32 MiB wanted, 16 MiB free"));
  CHECK(contains(wanted, "--memory-per-rank"));

  const std::unique_ptr<Backend> backend = make_cuda_backend({.pool_bytes = std::int64_t{8} << 20});
  CHECK(backend->memory_limit() == std::int64_t{8} << 20);
  CHECK_THROWS_AS(backend->allocate(std::int64_t{8} << 20), DeviceError);  // cuBLASLt's workspace lies there
  CHECK_THROWS_AS(backend->allocate(-1), std::invalid_argument);
  CHECK_THROWS_AS(backend->make_matrix(8, 8, DType::kInt8), std::invalid_argument);
  const Buffer half = backend->allocate(std::int64_t{4} << 20);
  CHECK_THROWS_AS(backend->allocate(std::int64_t{4} << 20), DeviceError);
}

TEST_CASE("buffers come zeroed, and what is given back is given out again") {
  const FreshDevice device;
  const std::unique_ptr<Backend> backend = cuda_backend();
  const std::int64_t before = backend->bytes_allocated();
  const std::vector<std::byte> zeros(5'000'000), sevens(5'000'000, std::byte{7});
  std::vector<std::byte> host(5'000'000);
  for (int round = 0; round < test::rounds(100); ++round) {
    std::vector<Buffer> buffers;
    for (const std::int64_t bytes : {0, 1, 100'000, 5'000'000}) buffers.push_back(backend->allocate(bytes));
    std::memset(host.data(), 1, host.size());
    backend->download(host.data(), buffers.back().data(), 5'000'000);
    REQUIRE(std::memcmp(host.data(), zeros.data(), host.size()) == 0);
    backend->upload(buffers.back().data(), sevens.data(), 5'000'000);
  }
  CHECK(backend->bytes_allocated() == before);
  CHECK(backend->peak_bytes() < before + 6'000'000);
}

TEST_CASE("parts of a pool: first fit, neighbours join") {
  stagecoach::cuda::PoolMap pool(1024 + 100);
  CHECK(pool.take(1) == 0);
  CHECK(pool.take(256) == 256);
  CHECK(pool.take(257) == 512);
  CHECK_FALSE(pool.take(1));
  CHECK(pool.used() == 1024);
  pool.give_back(0, 1);
  pool.give_back(512, 257);
  CHECK(pool.largest_free() == 512);
  CHECK_FALSE(pool.take(600));
  pool.give_back(256, 256);
  CHECK(pool.largest_free() == 1024);
  CHECK(pool.take(1024) == 0);
  CHECK(pool.peak() == 1024);
}

TEST_CASE("a failure at any call is a device error, ends all stages and leaks nothing") {
  const FreshDevice device;
  const std::vector<Sample> expected = run_loopback(small_job(), small_layout(1));
  REQUIRE(expected.size() == 2);
  for (const std::int32_t stages : {1, 2}) {
    CHECK(emulation::live() == emulation::Live{});
    const std::uint64_t before = emulation::calls();
    REQUIRE(outcome(expected, stages) == "");
    const auto calls = static_cast<std::int64_t>(emulation::calls() - before);
    REQUIRE(calls > 300);
    std::mt19937_64 random(std::random_device{}());
    const bool all = slow_tests();
    std::int64_t silent = 0, failed = 0;
    for (std::int64_t n = 1; n <= calls; n += all ? 1 : draw(random, 1, 150)) {
      for (const bool sticky : {false, true}) {
        emulation::reset();
        emulation::fail_call(static_cast<std::uint64_t>(n), cudaErrorIllegalAddress, sticky);
        const std::string end = outcome(expected, stages);
        const std::string call = emulation::failed_call();
        const bool recording = emulation::failed_in_capture() || call == "cudaStreamBeginCapture" ||
                               call == "cudaGraphInstantiate" || call == "cudaGraphUpload";
        emulation::fail_call(0, 0);
        INFO("stages " << stages << " call " << n << " of " << calls << (sticky ? " sticky " : " ") << call);
        // What releases may fail without a word: the work is done. What only records may, too: it is done without.
        const bool releases = call.empty() || contains(call, "Free") || contains(call, "Destroy") ||
                              call == "cudaSetDevice" || contains(call, "Synchronize");
        CHECK((end.starts_with("device: ") || (end.empty() && (releases || (recording && !sticky)))));
        ++(end.empty() ? silent : failed);
        CHECK(emulation::live() == emulation::Live{});
      }
    }
    MESSAGE(stages << " stages: " << calls << " calls, " << failed << " runs failed, " << silent << " did not");
    CHECK(failed > 2 * silent);
    emulation::reset();
  }
}

TEST_CASE("mistakes are noticed: a missing event wait, a block too few, a missing barrier") {
  const FreshDevice device;
  const std::vector<Sample> expected = run_loopback(small_job(), small_layout(1));
  REQUIRE(outcome(expected, 2) == "");
  REQUIRE(outcome(expected, 1, true) == "");
  const auto noticed = [&](const emulation::Mutations& mutations, std::int32_t stages, bool checking) {
    return emulation::noticed_in_child([&] {
      emulation::mutate(mutations);
      return outcome(expected, stages, checking) != "";
    });
  };
  CHECK_FALSE(noticed({}, 1, true));
  CHECK(noticed({.drop_waits = -1}, 2, false));
  CHECK(noticed({.cut_every = 1}, 1, false));
  for (const int every : {1, 2, 3, 7, 20}) CHECK(noticed({.cut_every = every}, 1, true));
  CHECK(noticed({.no_barriers = true}, 1, true));
}

TEST_CASE("results do not depend on when the device works, nor in which order its threads run") {
  const FreshDevice device;
  const std::vector<Sample> expected = run_loopback(small_job(), small_layout(1));
  for (const auto timing : {emulation::Timing::kImmediate, emulation::Timing::kLate}) {
    for (const auto order : {emulation::Order::kForward, emulation::Order::kBackward, emulation::Order::kShuffled}) {
      for (const bool early : {false, true}) {
        emulation::schedule(timing, order, std::random_device{}(), early);
        CHECK(outcome(expected, 2) == "");
      }
    }
  }
}
