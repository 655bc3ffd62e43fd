// The wire format, both ways. Any bytes, as they are and behind a right beginning, are refused with one line or decode
// to a message that encodes to the same bytes; and any message made of the bytes survives encoding and decoding.
#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <span>

#include "runtime/microbatch.hpp"
#include "tests/fuzz/fuzz.hpp"

namespace {

using namespace stagecoach;
using fuzz::require;

template <typename Decode>
void refused_or_identical(std::span<const std::byte> bytes, const Decode& decode) {
  try {
    const std::vector<std::byte> again = encode(decode(bytes));
    require(std::ranges::equal(again, bytes));
  } catch (const WireError& error) {
    fuzz::require_plain(error.what());
  }
}

// Magic, version and id, as an empty message begins; then `rest`.
template <typename Message>
std::vector<std::byte> behind_a_beginning(const Message& empty, std::span<const std::byte> rest) {
  std::vector<std::byte> bytes = encode(empty);
  bytes.resize(16);
  bytes.insert(bytes.end(), rest.begin(), rest.end());
  return bytes;
}

SlotCommand some_command(FuzzedDataProvider& in) {
  SlotCommand command;
  command.kind = static_cast<SlotCommand::Kind>(in.ConsumeIntegralInRange<int>(1, 5));
  command.slot = in.ConsumeIntegral<std::int32_t>();
  switch (command.kind) {
    case SlotCommand::Kind::kAppendPages:
      command.pages.resize(in.ConsumeIntegralInRange<std::size_t>(0, 8));
      for (std::int32_t& page : command.pages) page = in.ConsumeIntegral<std::int32_t>();
      break;
    case SlotCommand::Kind::kDrop:
      break;
    case SlotCommand::Kind::kFork:
      command.source = in.ConsumeIntegral<std::int32_t>();
      command.count = in.ConsumeIntegral<std::int32_t>();
      break;
    case SlotCommand::Kind::kCopyPage:
      command.source = in.ConsumeIntegral<std::int32_t>();
      break;
    case SlotCommand::Kind::kSampling:
      command.sampling.options.temperature = std::bit_cast<double>(in.ConsumeIntegral<std::uint64_t>());
      command.sampling.options.top_k = in.ConsumeIntegral<std::int32_t>();
      command.sampling.options.top_p = in.ConsumeProbability<double>();
      command.sampling.options.repetition_penalty = in.ConsumeFloatingPointInRange<double>(0.0, 100.0);
      if (!is_valid(command.sampling.options)) command.sampling.options = {};
      command.sampling.seed = in.ConsumeIntegral<std::uint64_t>();
      command.sampling.sample = in.ConsumeIntegral<std::uint32_t>();
      break;
  }
  return command;
}

void survives(FuzzedDataProvider in) {
  Microbatch microbatch;
  microbatch.id = in.ConsumeIntegral<std::uint64_t>();
  microbatch.stop = in.ConsumeBool();
  microbatch.commands.resize(in.ConsumeIntegralInRange<std::size_t>(0, 6));
  for (SlotCommand& command : microbatch.commands) command = some_command(in);
  microbatch.rows.resize(in.ConsumeIntegralInRange<std::size_t>(0, 6));
  for (Row& row : microbatch.rows) {
    row.token = in.ConsumeIntegral<std::int32_t>();
    row.slot = in.ConsumeIntegral<std::int32_t>();
    row.position = in.ConsumeIntegral<std::int32_t>();
    row.flags = in.ConsumeIntegral<std::uint32_t>();
    if ((row.flags & kRowScore) != 0) row.target = in.ConsumeIntegral<std::int32_t>();
  }
  require(decode_microbatch(encode(microbatch)) == microbatch);

  TokenBatch tokens;
  tokens.id = in.ConsumeIntegral<std::uint64_t>();
  tokens.tokens.resize(in.ConsumeIntegralInRange<std::size_t>(0, 6));
  for (PickedToken& picked : tokens.tokens) {
    picked.slot = in.ConsumeIntegral<std::int32_t>();
    picked.token = in.ConsumeIntegral<std::int32_t>();
    picked.logprob = std::bit_cast<float>(in.ConsumeIntegral<std::uint32_t>());
    if (std::isnan(picked.logprob)) picked.logprob = 0.0F;  // equal to nothing
  }
  require(decode_token_batch(encode(tokens)) == tokens);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  refused_or_identical(bytes, decode_microbatch);
  refused_or_identical(bytes, decode_token_batch);
  refused_or_identical(behind_a_beginning(Microbatch{}, bytes), decode_microbatch);
  refused_or_identical(behind_a_beginning(TokenBatch{}, bytes), decode_token_batch);
  try {
    survives(FuzzedDataProvider(data, size));
  } catch (const WireError&) {
    std::abort();
  }
  return 0;
}
