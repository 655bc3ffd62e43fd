// Pipelines whose decode steps are replayed as graphs: the tokens of plain launches, and mistakes with graphs are
// noticed.
#include <doctest/doctest.h>

#include <functional>

#include "tests/cuda/cuda_backends.hpp"
#include "tests/cuda_emulation/emulation.hpp"
#include "tests/cuda_emulation/in_child.hpp"
#include "tests/pipeline/harness.hpp"

using namespace stagecoach;
using namespace stagecoach::test;
namespace emulation = stagecoach::cuda_emulation;

namespace {

struct FreshDevice {
  FreshDevice() { emulation::reset(); }
  ~FreshDevice() { emulation::reset(); }
};

std::uint64_t replays_of(const std::function<void()>& body) {
  const std::uint64_t before = emulation::graph_launches();
  body();
  return emulation::graph_launches() - before;
}

// Sequences end one after another, so that steps of three, two and one row come, each several times.
Job decoding_job() {
  Job job;
  job.model = "synthetic:gpt2,n_layer=2,n_head=2,n_embd=32,n_positions=128,vocab_size=50,dtype=float32,seed=5";
  job.dtype = DType::kFloat16;
  job.kv_dtype = DType::kFloat16;
  for (const std::int32_t length : {5, 9, 1}) {
    Request request;
    request.index = static_cast<std::int64_t>(job.requests.size());
    for (std::int32_t t = 0; t < length; ++t) request.tokens.push_back((7 * t + length) % 50);
    request.max_new_tokens = 6 + 6 * static_cast<std::int32_t>(request.index);
    request.ignore_eos = true;
    request.logprobs = true;
    job.requests.push_back(std::move(request));
  }
  return job;
}

template <bool kDeterministic, bool kGraphs>
std::unique_ptr<Backend> small_backend() {
  return make_cuda_backend({.pool_bytes = std::int64_t{64} << 20, .deterministic = kDeterministic, .graphs = kGraphs});
}

Layout layout_of(std::int32_t stages, std::unique_ptr<Backend> (*backend)()) {
  Layout layout;
  layout.stages = stages == 1 ? std::vector<BlockRange>{{0, 1}} : std::vector<BlockRange>{{0, 0}, {1, 1}};
  layout.chunk_tokens = 20;
  layout.in_flight = stages;
  layout.slots = 3;
  layout.spare_pages = 3;  // all at once
  layout.backend = backend;
  return layout;
}

}  // namespace

TEST_CASE("pipelines with graphs give the tokens of those without, and mistakes with graphs are noticed") {
  const FreshDevice device;
  const Job job = decoding_job();
  const std::vector<Sample> expected = run_loopback(job, layout_of(1, small_backend<true, false>));
  CHECK(emulation::graph_launches() == 0);
  const auto end_of = [&](std::int32_t stages) -> std::string {
    try {
      return difference(expected, run_loopback(job, layout_of(stages, small_backend<true, true>)));
    } catch (const std::exception& e) {
      return e.what();
    }
  };
  for (const std::int32_t stages : {1, 2}) {
    INFO(stages << " stages");
    CHECK(replays_of([&] { CHECK(end_of(stages) == ""); }) >= 8);
    CHECK(emulation::live() == emulation::Live{});
    const auto noticed = [&](const emulation::Mutations& mutations) {
      return emulation::noticed_in_child([&] {
        emulation::mutate(mutations);
        return end_of(stages) != "";
      });
    };
    CHECK_FALSE(noticed({}));
    CHECK(noticed({.forget_every = stages == 1 ? 1 : 13}));
    CHECK(noticed({.first_graph = true}));
  }
  const std::vector<Sample> plain = run_loopback(job, layout_of(2, small_backend<false, false>));
  CHECK(difference(plain, run_loopback(job, layout_of(2, small_backend<false, true>))) == "");
}
