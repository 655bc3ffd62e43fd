#include "runtime/microbatch.hpp"

#include <fmt/format.h>

#include "runtime/request_wire.hpp"

namespace stagecoach {
namespace {

// Layout of both messages: u32 magic, u32 version, u64 id, then the fields in order; counts are u32; little-endian.
constexpr std::uint32_t kMicrobatchMagic = 0x424d4353U;  // "SCMB"
constexpr std::uint32_t kTokensMagic = 0x4b544353U;      // "SCTK"
constexpr std::uint32_t kVersion = 2;

void expect(wire::Reader& in, std::uint32_t magic) {
  if (const std::uint32_t found = in.u32(); found != magic) {
    throw WireError(fmt::format("message begins with {:#x}, expected {:#x}", found, magic));
  }
  if (const std::uint32_t version = in.u32(); version != kVersion) {
    throw WireError(fmt::format("message has version {}, this program speaks {}: do all ranks run the same program?",
                                version, kVersion));
  }
}

// Each kind has the fields that it uses and no others.
void write_command(wire::Writer& out, const SlotCommand& command) {
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
      put(out, command.sampling.options);
      out.put(command.sampling.seed);
      out.put(command.sampling.sample);
      break;
  }
}

SlotCommand read_command(wire::Reader& in) {
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
      command.sampling.options = read_sampling_options(in);
      command.sampling.seed = in.u64();
      command.sampling.sample = in.u32();
      return command;
  }
  throw WireError(fmt::format("slot command of unknown kind {}", kind));
}

}  // namespace

std::vector<std::byte> encode(const Microbatch& microbatch) {
  wire::Writer out;
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
  wire::Writer out;
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
  wire::Reader in(bytes);
  expect(in, kMicrobatchMagic);
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
  wire::Reader in(bytes);
  expect(in, kTokensMagic);
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
