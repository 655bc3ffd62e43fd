// Journals: any bytes give samples that encode to the bytes that they came from, and whole records stay readable
// whatever stands before and behind them.
#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <span>
#include <vector>

#include "runtime/journal_records.hpp"
#include "runtime/wire.hpp"
#include "tests/fuzz/fuzz.hpp"

using namespace stagecoach;
using fuzz::require;

namespace {

constexpr std::uint64_t kKey = 11;

void check_entries(std::span<const std::byte> bytes) {
  const JournalContents contents = read_journal(bytes, kKey);
  require(contents.damaged_bytes >= 0 && contents.damaged_bytes <= static_cast<std::int64_t>(bytes.size()));
  for (const SampleEntry& entry : contents.samples) {
    const auto record = bytes.subspan(static_cast<std::size_t>(entry.offset), entry.bytes);
    require(std::ranges::equal(record_of(kKey, sample_of(record)), record));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  check_entries(std::as_bytes(std::span(data, size)));

  FuzzedDataProvider in(data, size);
  Sample sample;
  sample.index = in.ConsumeIntegral<std::int64_t>();
  sample.sample = in.ConsumeIntegral<std::int32_t>();
  sample.finish = static_cast<FinishReason>(in.ConsumeIntegralInRange<int>(0, 2));
  sample.tokens.resize(in.ConsumeIntegralInRange<std::size_t>(0, 20));
  for (std::int32_t& token : sample.tokens) token = in.ConsumeIntegral<std::int32_t>();
  const JobIdentity job{{{in.ConsumeRandomLengthString(20), in.ConsumeRandomLengthString(20)}}};
  const std::string before = in.ConsumeRandomLengthString(40);
  const std::vector<std::byte> record = record_of(kKey, sample);
  std::vector<std::byte> bytes;
  const auto add = [&bytes](std::span<const std::byte> more) { bytes.insert(bytes.end(), more.begin(), more.end()); };
  add(std::as_bytes(std::span(before)));
  add(record_of(job));
  add(record);
  add(in.ConsumeRemainingBytes<std::byte>());
  check_entries(bytes);
  const JournalContents contents = read_journal(bytes, kKey);
  require(std::ranges::any_of(contents.samples, [&](const SampleEntry& entry) {
    return entry.index == sample.index && entry.sample == sample.sample;
  }));
  return 0;
}
