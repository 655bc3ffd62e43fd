// Attention in parts where calls fail, work runs in other orders, and machines are broken.
#include "tests/cuda/spread.hpp"
#include "tests/cuda_emulation/emulation.hpp"
#include "tests/cuda_emulation/in_child.hpp"

#include <cuda_runtime.h>

using namespace stagecoach;
using namespace stagecoach::test;
namespace emulation = stagecoach::cuda_emulation;

namespace {

struct FreshDevice {
  FreshDevice() { emulation::reset(); }
  ~FreshDevice() { emulation::reset(); }
};

const std::vector<std::int32_t> kLengths = {kSegmentPositions + 20, 5};

std::vector<float> run(Backend& backend, std::uint64_t seed) {
  Spread spread(backend, seed, {1, 16, DType::kFloat16, DType::kFloat16}, kLengths, 2);
  spread.append({{0, 0, kLengths[0]}, {1, 0, kLengths[1]}});
  std::vector<float> all = spread.merged({{0, kSegmentPositions - 4, 9}, {1, 4, 1}}, 6);
  const std::vector<float> more = spread.merged({{0, kLengths[0] - 1, 1}, {1, 0, 2}}, 2);
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

}  // namespace

TEST_CASE("CUDA parts: a failure at any call is a device error, and the backend goes on") {
  const FreshDevice device;
  const std::uint64_t seed = fresh_random().bits();
  std::vector<float> expected;
  std::uint64_t calls = 0;
  {
    const std::unique_ptr<Backend> backend = deterministic_cuda_backend();
    const std::uint64_t before = emulation::calls();
    expected = run(*backend, seed);
    calls = emulation::calls() - before;
  }
  REQUIRE(calls > 50);
  Random random = fresh_random();
  std::int64_t runs = 0, failed = 0;
  for (std::uint64_t n = 1; n <= calls; n += static_cast<std::uint64_t>(random.between(1, 5))) {
    emulation::reset();
    const std::unique_ptr<Backend> backend = deterministic_cuda_backend();
    emulation::fail_call(n, cudaErrorLaunchFailure);
    INFO("call " << n << " of " << calls);
    std::vector<float> got;
    try {
      got = run(*backend, seed);
    } catch (const DeviceError&) {
    }
    // What releases may fail without a word.
    const std::string call = emulation::failed_call();
    CHECK((got.empty() || (got == expected && (call.ends_with("Synchronize") || call == "cudaSetDevice"))));
    failed += got.empty() ? 1 : 0;
    emulation::fail_call(0, 0);
    CHECK(run(*backend, seed) == expected);
    ++runs;
  }
  CHECK(failed > runs / 2);
}

TEST_CASE("CUDA parts: the order of work does not matter, and broken machines are noticed") {
  const FreshDevice device;
  const std::uint64_t seed = fresh_random().bits();
  const std::vector<float> expected = run(*deterministic_cuda_backend(), seed);
  for (const auto timing : {emulation::Timing::kImmediate, emulation::Timing::kLate}) {
    for (const auto order : {emulation::Order::kForward, emulation::Order::kBackward, emulation::Order::kShuffled}) {
      emulation::schedule(timing, order, seed, order == emulation::Order::kForward);
      CHECK(run(*deterministic_cuda_backend(), seed) == expected);
    }
  }
  emulation::reset();
  const auto noticed = [&](const emulation::Mutations& mutations) {
    return emulation::noticed_in_child([&] {
      emulation::mutate(mutations);
      try {
        run(*make_checking_backend(cuda_backend()), seed);
      } catch (const std::exception&) {
        return true;
      }
      return false;
    });
  };
  CHECK_FALSE(noticed({}));
  CHECK(noticed({.cut_every = 1}));
  CHECK(noticed({.no_barriers = true}));
  CHECK(noticed({.no_copy_waits = true}));
}

TEST_CASE("CUDA parts: steps with them are not recorded") {
  const FreshDevice device;
  const std::unique_ptr<Backend> backend = cuda_backend();
  const std::vector<std::int32_t> tokens{1}, positions{70}, sequences{0}, pages{0, 1}, first{0, 1}, numbers{0};
  DeviceArray qkv(*backend, DType::kFloat16, 1, 24), out(*backend, DType::kFloat16, 1, 8),
      parts(*backend, DType::kFloat32, 1, part_width(1, 8));
  Random random = fresh_random();
  qkv.randomize(random);
  const Buffer storage = backend->allocate(2 * backend->kv_page_bytes(1, 8, DType::kFloat16));
  const KvPages kv{storage.data(), DType::kFloat16, 2, 1, 8};
  for (int round = 0; round < 4; ++round) {
    backend->set_rows({tokens, positions, sequences, pages, 2});
    backend->step(
        {1, 2, 3}, [] {},
        [&](const Backend::Progress&) {
          backend->append(qkv.view(), kv);
          backend->attention_parts(qkv.view(), kv, 0.3F, 0, 1, parts.view());
          backend->merge_parts(parts.view(), 1, first, numbers, out.view());
        });
  }
  backend->synchronize();
  CHECK(emulation::graph_launches() == 0);
  CHECK(std::ranges::none_of(out.values(), [](float value) { return std::isnan(value); }));
}
