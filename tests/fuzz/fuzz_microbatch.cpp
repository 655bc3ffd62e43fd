// Any bytes are refused or decode to a message that encodes to the same bytes.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <span>

#include "runtime/microbatch.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  try {
    const auto again = stagecoach::encode(stagecoach::decode_microbatch(bytes));
    if (!std::equal(again.begin(), again.end(), bytes.begin(), bytes.end())) std::abort();
  } catch (const stagecoach::WireError&) {
  }
  try {
    const auto again = stagecoach::encode(stagecoach::decode_token_batch(bytes));
    if (!std::equal(again.begin(), again.end(), bytes.begin(), bytes.end())) std::abort();
  } catch (const stagecoach::WireError&) {
  }
  return 0;
}
