#include "runtime/microbatch.hpp"

#include <fmt/format.h>

#include <bit>
#include <type_traits>

namespace stagecoach {
namespace {

// Layout of both messages: u32 magic, u32 version, u64 id, then the fields in order; counts are u32; little-endian.
constexpr std::uint32_t kMicrobatchMagic = 0x424d4353U;  // "SCMB"
constexpr std::uint32_t kTokensMagic = 0x4b544353U;      // "SCTK"
constexpr std::uint32_t kVersion = 2;

class Writer {
 public:
  template <typename T>
  requires std::is_unsigned_v<T>
  void put(T value) {
    for (std::size_t i = 0; i < sizeof(T); ++i) bytes_.push_back(static_cast<std::byte>(value >> (8 * i)));
  }
  void put(std::int32_t value) { put(static_cast<std::uint32_t>(value)); }
  void put(double value) { put(std::bit_cast<std::uint64_t>(value)); }
  void put_count(std::size_t count) { put(static_cast<std::uint32_t>(count)); }
  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : rest_(bytes) {}
  std::uint8_t u8() { return number<std::uint8_t>(); }
  std::uint32_t u32() { return number<std::uint32_t>(); }
  std::uint64_t u64() { return number<std::uint64_t>(); }
  std::int32_t i32() { return static_cast<std::int32_t>(u32()); }
  double f64() { return std::bit_cast<double>(u64()); }
  // A count of items that take at least `item_bytes` each: bounded by what is left, so that it is safe to reserve.
  std::size_t count(std::size_t item_bytes) {
    const std::size_t n = u32();
    if (n > rest_.size() / item_bytes) {
      throw WireError(
          fmt::format("message announces {} items of {} bytes, {} bytes are left", n, item_bytes, rest_.size()));
    }
    return n;
  }
  void expect(std::uint32_t magic) {
    if (const std::uint32_t found = u32(); found != magic) {
      throw WireError(fmt::format("message begins with {:#x}, expected {:#x}", found, magic));
    }
    if (const std::uint32_t version = u32(); version != kVersion) {
      throw WireError(fmt::format("message has version {}, this program speaks {}: do all ranks run the same program?",
                                  version, kVersion));
    }
  }
  void end() const {
    if (!rest_.empty()) throw WireError(fmt::format("message has {} bytes too many", rest_.size()));
  }

 private:
  template <typename T>
  T number() {
    if (rest_.size() < sizeof(T)) throw WireError("message is cut off");
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < sizeof(T); ++i) value |= static_cast<std::uint64_t>(rest_[i]) << (8 * i);
    rest_ = rest_.subspan(sizeof(T));
    return static_cast<T>(value);
  }
  std::span<const std::byte> rest_;
};

// Each kind has the fields that it uses and no others.
void write_command(Writer& out, const SlotCommand& command) {
  out.put(static_cast<std::uint8_t>(command.kind));
  out.put(command.slot);
  switch (command.kind) {
    case SlotCommand::Kind::kAppendPages:
      out.put_count(command.pages.size());
      for (const std::int32_t page : command.pages) out.put(page);
      break;
    case SlotCommand::Kind::kDrop:
      break;
    case SlotCommand::Kind::kFork:
      out.put(command.source);
      out.put(command.count);
      break;
    case SlotCommand::Kind::kCopyPage:
      out.put(command.source);
      break;
    case SlotCommand::Kind::kSampling:
      out.put(command.sampling.options.temperature);
      out.put(command.sampling.options.top_k);
      out.put(command.sampling.options.top_p);
      out.put(command.sampling.options.repetition_penalty);
      out.put(command.sampling.seed);
      out.put(command.sampling.sample);
      break;
  }
}

SlotCommand read_command(Reader& in) {
  SlotCommand command;
  const std::uint8_t kind = in.u8();
  command.kind = static_cast<SlotCommand::Kind>(kind);
  command.slot = in.i32();
  switch (command.kind) {
    case SlotCommand::Kind::kAppendPages: {
      const std::size_t pages = in.count(4);
      command.pages.reserve(pages);
      for (std::size_t i = 0; i < pages; ++i) command.pages.push_back(in.i32());
      return command;
    }
    case SlotCommand::Kind::kDrop:
      return command;
    case SlotCommand::Kind::kFork:
      command.source = in.i32();
      command.count = in.i32();
      return command;
    case SlotCommand::Kind::kCopyPage:
      command.source = in.i32();
      return command;
    case SlotCommand::Kind::kSampling:
      command.sampling.options.temperature = in.f64();
      command.sampling.options.top_k = in.i32();
      command.sampling.options.top_p = in.f64();
      command.sampling.options.repetition_penalty = in.f64();
      command.sampling.seed = in.u64();
      command.sampling.sample = in.u32();
      if (!is_valid(command.sampling.options)) throw WireError("sampling options out of range");
      return command;
  }
  throw WireError(fmt::format("slot command of unknown kind {}", kind));
}

}  // namespace

std::vector<std::byte> encode(const Microbatch& microbatch) {
  Writer out;
  out.put(kMicrobatchMagic);
  out.put(kVersion);
  out.put(microbatch.id);
  out.put(static_cast<std::uint8_t>(microbatch.stop ? 1 : 0));
  out.put_count(microbatch.commands.size());
  for (const SlotCommand& command : microbatch.commands) write_command(out, command);
  out.put_count(microbatch.rows.size());
  for (const Row& row : microbatch.rows) {
    out.put(row.token);
    out.put(row.slot);
    out.put(row.position);
    out.put(row.flags);
    if ((row.flags & kRowScore) != 0) out.put(row.target);
  }
  return out.take();
}

std::vector<std::byte> encode(const TokenBatch& tokens) {
  Writer out;
  out.put(kTokensMagic);
  out.put(kVersion);
  out.put(tokens.id);
  out.put_count(tokens.tokens.size());
  for (const PickedToken& picked : tokens.tokens) {
    out.put(picked.slot);
    out.put(picked.token);
    out.put(std::bit_cast<std::uint32_t>(picked.logprob));
  }
  return out.take();
}

Microbatch decode_microbatch(std::span<const std::byte> bytes) {
  Reader in(bytes);
  in.expect(kMicrobatchMagic);
  Microbatch result;
  result.id = in.u64();
  const std::uint8_t stop = in.u8();
  if (stop > 1) throw WireError(fmt::format("stop flag is {}", stop));
  result.stop = stop == 1;
  const std::size_t commands = in.count(5);
  for (std::size_t i = 0; i < commands; ++i) result.commands.push_back(read_command(in));
  const std::size_t rows = in.count(16);
  result.rows.reserve(rows);
  for (std::size_t i = 0; i < rows; ++i) {
    Row row;
    row.token = in.i32();
    row.slot = in.i32();
    row.position = in.i32();
    row.flags = in.u32();
    if ((row.flags & kRowScore) != 0) row.target = in.i32();
    result.rows.push_back(row);
  }
  in.end();
  return result;
}

TokenBatch decode_token_batch(std::span<const std::byte> bytes) {
  Reader in(bytes);
  in.expect(kTokensMagic);
  TokenBatch result;
  result.id = in.u64();
  const std::size_t count = in.count(12);
  result.tokens.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    PickedToken picked;
    picked.slot = in.i32();
    picked.token = in.i32();
    picked.logprob = std::bit_cast<float>(in.u32());
    result.tokens.push_back(picked);
  }
  in.end();
  return result;
}

}  // namespace stagecoach
