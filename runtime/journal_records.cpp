#include "runtime/journal_records.hpp"

#include <algorithm>
#include <cstring>
#include <tuple>

#include "runtime/checksum.hpp"
#include "runtime/request_wire.hpp"

namespace stagecoach {
namespace {

constexpr std::uint32_t kMagic = 0x314a4353U;  // "SCJ1"
constexpr std::size_t kFrameBytes = 16;
constexpr std::size_t kHashedFrom = 4;  // the size, then what follows the hash

enum class Kind : std::uint8_t { kJob = 1, kSample = 2, kCompletion = 3 };

std::uint64_t hash_of(std::span<const std::byte> size, std::span<const std::byte> payload) {
  Xxh3 hash;
  hash.update(size);
  hash.update(payload);
  return hash.value();
}

wire::Writer begin(Kind kind, std::uint64_t key) {
  wire::Writer out;
  out.put(static_cast<std::uint8_t>(kind));
  out.put(key);
  return out;
}

std::vector<std::byte> framed(const wire::Writer& payload) {
  wire::Writer size;
  size.put_count(payload.bytes().size());
  wire::Writer frame;
  frame.put(kMagic);
  frame.put_count(payload.bytes().size());
  frame.put(hash_of(size.bytes(), payload.bytes()));
  std::vector<std::byte> record = frame.take();
  record.insert(record.end(), payload.bytes().begin(), payload.bytes().end());
  return record;
}

// The payload of the record at the beginning of `bytes`, if there is a whole one.
std::optional<std::span<const std::byte>> payload_at(std::span<const std::byte> bytes) {
  if (bytes.size() < kFrameBytes) return std::nullopt;
  wire::Reader in(bytes.first(kFrameBytes));
  if (in.u32() != kMagic) return std::nullopt;
  const std::size_t size = in.u32();
  if (size > bytes.size() - kFrameBytes) return std::nullopt;
  const std::span<const std::byte> payload = bytes.subspan(kFrameBytes, size);
  if (hash_of(bytes.subspan(kHashedFrom, sizeof(std::uint32_t)), payload) != in.u64()) return std::nullopt;
  return payload;
}

void put_parts(wire::Writer& out, const JobIdentity& job) {
  for (const auto& [name, value] : job.parts) {
    out.put(std::string_view(name));
    out.put(std::string_view(value));
  }
}

JobIdentity read_job(wire::Reader& in) {
  JobIdentity job;
  for (std::size_t n = in.count(2 * sizeof(std::uint32_t)); n > 0; --n) {
    std::string name = in.text();
    job.parts.emplace_back(std::move(name), in.text());
  }
  return job;
}

Completion read_completion(wire::Reader& in) {
  Completion completion;
  completion.bytes = in.i64();
  completion.xxh3 = in.u64();
  completion.last_words = in.text();
  return completion;
}

// Sorts records into what they are.
class Collector {
 public:
  explicit Collector(std::uint64_t key) : key_(key) {}

  void take(std::span<const std::byte> payload, std::int64_t offset) {
    wire::Reader in(payload);
    const std::uint8_t kind = in.u8();
    const bool mine = in.u64() == key_;
    if (kind == static_cast<std::uint8_t>(Kind::kSample)) {
      if (!mine) ++found_.other_samples;
      const Sample sample = read_sample(in);
      in.end();
      if (!mine) return;
      found_.samples.push_back(
          {sample.index, sample.sample, static_cast<std::uint32_t>(payload.size() + kFrameBytes), offset});
    } else if (kind == static_cast<std::uint8_t>(Kind::kJob)) {
      JobIdentity job = read_job(in);
      if (!mine) found_.other = std::move(job);
    } else if (kind == static_cast<std::uint8_t>(Kind::kCompletion)) {
      Completion completion = read_completion(in);
      if (mine) found_.completion = std::move(completion);
    } else {
      throw WireError("record of no known kind");
    }
  }

  JournalContents finish(std::int64_t damaged_bytes) {
    found_.damaged_bytes = damaged_bytes;
    const auto place = [](const SampleEntry& e) { return std::tuple(e.index, e.sample, e.offset); };
    std::ranges::sort(found_.samples, {}, place);
    const auto twice = std::ranges::unique(found_.samples, [](const SampleEntry& a, const SampleEntry& b) {
      return a.index == b.index && a.sample == b.sample;
    });
    found_.samples.erase(twice.begin(), twice.end());
    return std::move(found_);
  }

 private:
  std::uint64_t key_;
  JournalContents found_;
};

}  // namespace

std::uint64_t JobIdentity::key() const {
  wire::Writer out;
  put_parts(out, *this);
  return xxh3_of(out.bytes());
}

std::vector<std::byte> record_of(const JobIdentity& job) {
  wire::Writer out = begin(Kind::kJob, job.key());
  out.put_count(job.parts.size());
  put_parts(out, job);
  return framed(out);
}

std::vector<std::byte> record_of(std::uint64_t key, const Sample& sample) {
  wire::Writer out = begin(Kind::kSample, key);
  put(out, sample);
  return framed(out);
}

std::vector<std::byte> record_of(std::uint64_t key, const Completion& completion) {
  wire::Writer out = begin(Kind::kCompletion, key);
  out.put(completion.bytes);
  out.put(completion.xxh3);
  out.put(std::string_view(completion.last_words));
  return framed(out);
}

JournalContents read_journal(std::span<const std::byte> bytes, std::uint64_t key) {
  Collector collector(key);
  std::int64_t damaged = 0;
  std::size_t at = 0;
  while (at < bytes.size()) {
    const auto payload = payload_at(bytes.subspan(at));
    if (payload) {
      try {
        collector.take(*payload, static_cast<std::int64_t>(at));
        at += kFrameBytes + payload->size();
        continue;
      } catch (const WireError&) {  // a record of another version
      }
    }
    // On to what may be the next one.
    const auto* rest = bytes.data() + at + 1;
    const auto* next = static_cast<const std::byte*>(std::memchr(rest, kMagic & 0xFFU, bytes.size() - at - 1));
    const std::size_t to = next == nullptr ? bytes.size() : static_cast<std::size_t>(next - bytes.data());
    damaged += static_cast<std::int64_t>(to - at);
    at = to;
  }
  return collector.finish(damaged);
}

Sample sample_of(std::span<const std::byte> record) {
  const auto payload = payload_at(record);
  if (!payload || payload->size() + kFrameBytes != record.size()) throw WireError("record of a sample is damaged");
  wire::Reader in(*payload);
  if (in.u8() != static_cast<std::uint8_t>(Kind::kSample)) throw WireError("record is no sample's");
  in.u64();
  Sample sample = read_sample(in);
  in.end();
  return sample;
}

}  // namespace stagecoach
