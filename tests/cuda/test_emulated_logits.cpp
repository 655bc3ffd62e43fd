// Summaries of logits under every order of threads, and mistakes in their kernel that tests must notice.
#include <algorithm>

#include "tests/cuda/device_fixture.hpp"
#include "tests/cuda_emulation/emulation.hpp"
#include "tests/cuda_emulation/in_child.hpp"

using namespace stagecoach;
using namespace stagecoach::test;
namespace emulation = stagecoach::cuda_emulation;

namespace {

struct FreshDevice {
  FreshDevice() { emulation::reset(); }
  ~FreshDevice() { emulation::reset(); }
};

// Four rows: in two the largest logits are in a few threads' share and outgrow the room for them, two are in no order.
struct Case {
  Case(Backend& backend, Random& random, std::int64_t vocab) : logits(backend, DType::kFloat32, 4, vocab) {
    logits.randomize(random, 10.0F);
    for (std::int64_t c = 0; c < vocab; ++c) {
      if (c % 128 < 6) logits.host().f32(0)[c] = 10.0F + static_cast<float>(c);
      if (c % 128 < 6) logits.host().f32(1)[c] = 10.0F + static_cast<float>(c / 2);
    }
    logits.send();
    for (const std::int32_t top : {60, 50, 33, 1}) {
      queries.push_back(
          {static_cast<std::int32_t>(std::min<std::int64_t>(top, vocab)), top / 2, 1.0 + 0.1 * top, tokens});
    }
  }
  std::vector<std::int32_t> tokens{0, 3, 49};
  DeviceArray logits;
  std::vector<LogitsQuery> queries;
};

std::vector<std::byte> summarize(Backend& backend, const Case& c) {
  std::vector<std::byte> host(static_cast<std::size_t>(summary_bytes(c.queries)));
  const auto bytes = static_cast<std::int64_t>(host.size());
  const Buffer out = backend.allocate(bytes);
  backend.summarize_logits(c.logits.view(), c.queries, out.data());
  backend.download(host.data(), out.data(), bytes);
  return host;
}

}  // namespace

TEST_CASE("the same bits in every order of threads") {
  const FreshDevice device;
  Random random = fresh_random();
  for (const std::int64_t vocab : {50, 3000, 70000}) {
    emulation::reset();
    const std::unique_ptr<Backend> backend = cuda_backend();
    const Case c(*backend, random, vocab);
    const std::vector<std::byte> expected = summarize(*backend, c);
    for (const auto order : {emulation::Order::kForward, emulation::Order::kBackward, emulation::Order::kShuffled,
                             emulation::Order::kShuffled}) {
      emulation::schedule(emulation::Timing::kLate, order, random.bits());
      CHECK(summarize(*backend, c) == expected);
    }
  }
}

TEST_CASE("missing barriers and blocks are noticed") {
  const FreshDevice device;
  Random random = fresh_random();
  for (const emulation::Mutations& mutations :
       {emulation::Mutations{.cut_every = 1}, emulation::Mutations{.no_barriers = true}}) {
    const auto summarize_checked = [&](bool broken) {
      emulation::reset();
      const std::unique_ptr<Backend> backend = make_checking_backend(cuda_backend());
      const Case c(*backend, random, 70000);
      if (broken) emulation::mutate(mutations);
      summarize(*backend, c);
      return false;
    };
    CHECK_FALSE(summarize_checked(false));
    CHECK(emulation::noticed_in_child([&] { return summarize_checked(true); }));
  }
}
