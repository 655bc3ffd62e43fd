// The records of a journal (journal.hpp), as bytes.
//
// Each is u32 magic, u32 size of the payload, u64 XXH3-64 of size and payload, payload; little-endian. Records stand
// one after the other; what lies between, damaged or torn, is passed over. The payload is u8 kind, u64 key, fields. The
// key is the hash of everything that results depend on, in every record, so that no record is ever taken for one of
// another job's, whatever else of the file is lost.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "runtime/request.hpp"

namespace stagecoach {

// What results depend on, as names and values that people understand.
struct JobIdentity {
  std::vector<std::pair<std::string, std::string>> parts;

  std::uint64_t key() const;
};

// That the results are complete, and how to know them.
struct Completion {
  std::int64_t bytes = 0;  // of the file
  std::uint64_t xxh3 = 0;  // of its bytes
  std::string last_words;  // what the run said at its end
};

std::vector<std::byte> record_of(const JobIdentity& job);
std::vector<std::byte> record_of(std::uint64_t key, const Sample& sample);
std::vector<std::byte> record_of(std::uint64_t key, const Completion& completion);

// Where a sample's record stands.
struct SampleEntry {
  std::int64_t index = 0;
  std::int32_t sample = 0;
  std::uint32_t bytes = 0;  // of the record
  std::int64_t offset = 0;
};

struct JournalContents {
  std::vector<SampleEntry> samples;      // of this job, by index and sample, each once
  std::int64_t other_samples = 0;        // of other jobs
  std::int64_t damaged_bytes = 0;        // that belong to no record
  std::optional<JobIdentity> other;      // the last one that is not this job
  std::optional<Completion> completion;  // of this job
};

// Takes any bytes. `some_passed` is called every few megabytes, when those before are not needed any more.
JournalContents read_journal(std::span<const std::byte> bytes, std::uint64_t key,
                             const std::function<void()>& some_passed = {});
// The sample of a whole record. Throws WireError.
Sample sample_of(std::span<const std::byte> record);

}  // namespace stagecoach
