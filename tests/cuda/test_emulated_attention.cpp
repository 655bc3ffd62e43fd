// CUDA attention on an emulated machine that runs its threads, blocks and copies in other orders, and on broken ones:
// the tests of attention must notice missing barriers, copies that never land and blocks that never ran.
#include <doctest/doctest.h>

#include "kernels/backend.hpp"
#include "tests/cuda/attention_fixture.hpp"
#include "tests/cuda_emulation/emulation.hpp"
#include "tests/cuda_emulation/in_child.hpp"

namespace {

namespace emulation = stagecoach::cuda_emulation;
using stagecoach::DType;
using stagecoach::test::AttentionCase;
using stagecoach::test::Chunk;
using stagecoach::test::fresh_random;
using stagecoach::test::PagedConversation;
using stagecoach::test::Random;
using stagecoach::test::worst_result;

struct FreshMachine {
  FreshMachine() { emulation::reset(); }
  ~FreshMachine() { emulation::reset(); }
};

// One for each family of kernels.
std::vector<AttentionCase> cases(Random& random) {
  std::vector<AttentionCase> result(2);
  result[0].dtype = DType::kFloat16;
  result[1].kv_dtype = DType::kFloat32;
  for (AttentionCase& shape : result) {
    shape.head_dim = 40;
    shape.options.scale = 0.3F;
    shape.deterministic = random.between(0, 1) == 0;
  }
  return result;
}

const std::vector<std::vector<Chunk>> kCalls = {{{0, 0, 100}, {1, 0, 66}}, {{0, 100, 200}, {1, 66, 1}}, {{0, 300, 1}}};
const std::vector<std::int32_t> kLengths = {301, 67};

std::vector<std::vector<float>> run(const PagedConversation& conversation) {
  return conversation.run(kCalls, conversation.shape().deterministic, 132);
}

}  // namespace

TEST_CASE("CUDA attention: the order of threads, blocks and copies does not matter") {
  Random random = fresh_random();
  const FreshMachine machine;
  for (const AttentionCase& shape : cases(random)) {
    const PagedConversation conversation(random, shape, kLengths);
    const auto first = run(conversation);
    CHECK(worst_result(conversation, first).ratio <= 1.0);
    for (const auto order : {emulation::Order::kForward, emulation::Order::kBackward, emulation::Order::kShuffled}) {
      const bool early_copies = random.between(0, 1) == 0;
      emulation::schedule(emulation::Timing::kLate, order, random.bits(), early_copies);
      const auto again = run(conversation);
      for (std::size_t s = 0; s < first.size(); ++s) {
        CHECK(std::memcmp(first[s].data(), again[s].data(), first[s].size() * sizeof(float)) == 0);
      }
    }
  }
}

TEST_CASE("CUDA attention: broken machines are noticed") {
  Random random = fresh_random();
  const FreshMachine machine;
  const auto noticed = [&](const AttentionCase& shape, const emulation::Mutations& mutations) {
    emulation::reset();
    const PagedConversation conversation(random, shape, kLengths);
    return emulation::noticed_in_child([&] {
      emulation::mutate(mutations);
      return !(worst_result(conversation, run(conversation)).ratio <= 1.0);
    });
  };
  const std::vector<AttentionCase> shapes = cases(random);
  for (const AttentionCase& shape : shapes) CHECK(noticed(shape, {.no_barriers = true}));
  CHECK(noticed(shapes[0], {.no_copy_waits = true}));
}
