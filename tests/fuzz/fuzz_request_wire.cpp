// Requests and samples between replicas: any bytes are refused or are what their value encodes to.
#include <algorithm>
#include <span>

#include "runtime/request_wire.hpp"
#include "tests/fuzz/fuzz.hpp"

using namespace stagecoach;
using fuzz::require;

namespace {

template <typename Read>
void check(std::span<const std::byte> bytes, const Read& read) {
  wire::Reader in(bytes);
  wire::Writer out;
  try {
    put(out, read(in));
  } catch (const WireError&) {
    return;
  }
  require(out.bytes().size() <= bytes.size() && std::ranges::equal(out.bytes(), bytes.first(out.bytes().size())));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::span<const std::byte> bytes = std::as_bytes(std::span(data, size));
  check(bytes, read_request);
  check(bytes, read_sample);
  return 0;
}
