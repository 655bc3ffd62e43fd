#include <doctest/doctest.h>

#include <cmath>
#include <random>

#include "runtime/microbatch.hpp"

using namespace stagecoach;

namespace {

unsigned below(std::mt19937& random, std::size_t bound) {
  return static_cast<unsigned>(random() % bound);
}

Microbatch random_microbatch(std::mt19937& random) {
  const auto any = [&] { return static_cast<std::int32_t>(random()); };
  Microbatch m;
  m.id = (static_cast<std::uint64_t>(random()) << 32) | random();
  m.stop = below(random, 2) == 0;
  for (unsigned i = below(random, 4); i > 0; --i) {
    SlotCommand command{static_cast<SlotCommand::Kind>(1 + below(random, 5)), any()};
    if (command.kind == SlotCommand::Kind::kAppendPages) {
      for (unsigned p = below(random, 5); p > 0; --p) command.pages.push_back(any());
    } else if (command.kind == SlotCommand::Kind::kFork) {
      command.source = any();
      command.count = any();
    } else if (command.kind == SlotCommand::Kind::kCopyPage) {
      command.source = any();
    } else if (command.kind == SlotCommand::Kind::kSampling) {
      command.sampling.options = {below(random, 1000) * 1e-3, static_cast<std::int32_t>(below(random, 50000)),
                                  below(random, 1000) * 1e-3, 0.5 + below(random, 1000) * 1e-3};
      command.sampling.seed = (static_cast<std::uint64_t>(random()) << 32) | random();
      command.sampling.sample = static_cast<std::uint32_t>(any());
    }
    m.commands.push_back(command);
  }
  for (unsigned i = below(random, 9); i > 0; --i) {
    Row row{any(), any(), any(), static_cast<std::uint32_t>(any())};
    if ((row.flags & kRowScore) != 0) row.target = any();
    m.rows.push_back(row);
  }
  return m;
}

}  // namespace

TEST_CASE("a microbatch survives its byte form, and every cut or excess is an error") {
  std::mt19937 random(std::random_device{}());
  for (int round = 0; round < 200; ++round) {
    const Microbatch m = random_microbatch(random);
    std::vector<std::byte> bytes = encode(m);
    CHECK(decode_microbatch(bytes) == m);
    for (std::size_t n = 0; n < bytes.size(); ++n) {
      CHECK_THROWS_AS(decode_microbatch(std::span(bytes).first(n)), WireError);
    }
    bytes.push_back(std::byte{0});
    CHECK_THROWS_AS(decode_microbatch(bytes), WireError);
  }
}

TEST_CASE("a damaged microbatch is refused or decodes to something that encodes to the same bytes") {
  std::mt19937 random(std::random_device{}());
  for (int round = 0; round < 5000; ++round) {
    std::vector<std::byte> bytes = encode(random_microbatch(random));
    bytes[below(random, bytes.size())] = static_cast<std::byte>(random());
    std::vector<std::byte> again = bytes;
    try {
      again = encode(decode_microbatch(bytes));
    } catch (const WireError&) {
    }
    CHECK(again == bytes);
  }
}

TEST_CASE("sampling options that no user could give are refused") {
  for (const double bad : {std::nan(""), -1.0, 1e300}) {
    Microbatch m;
    SlotCommand command{SlotCommand::Kind::kSampling, 0};
    command.sampling.options.temperature = bad;
    m.commands = {command};
    CHECK_THROWS_AS(decode_microbatch(encode(m)), WireError);
  }
}

TEST_CASE("tokens survive their byte form") {
  const TokenBatch batch{77, {{1, 50256, -0.25F}, {0, 3, 0.0F}}};
  std::vector<std::byte> bytes = encode(batch);
  CHECK(decode_token_batch(bytes) == batch);
  CHECK_THROWS_AS(decode_microbatch(bytes), WireError);
  bytes.pop_back();
  CHECK_THROWS_AS(decode_token_batch(bytes), WireError);
}

TEST_CASE("another version is refused with both numbers") {
  std::vector<std::byte> bytes = encode(Microbatch{});
  bytes[4] = std::byte{9};
  CHECK_THROWS_WITH_AS(decode_microbatch(bytes),
                       "message has version 9, this program speaks 2: do all ranks run the same program?", WireError);
}
