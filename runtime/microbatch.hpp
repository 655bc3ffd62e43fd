// The only thing that stages agree on: which rows travel together, and what to do with page tables first.
//
// Stage 0 makes a Microbatch, every stage applies its slot commands in order and then runs its rows. A TokenBatch goes
// back from the last stage to stage 0. Both have a versioned little-endian byte form; decoding checks every length and
// throws WireError, and a decoded value encodes to the same bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "runtime/request.hpp"
#include "runtime/wire.hpp"

namespace stagecoach {

enum RowFlags : std::uint32_t {
  kRowSample = 1,   // the last stage picks the next token from this row's logits
  kRowLogprob = 2,  // and returns its log-probability
  kRowScore = 4,    // the last stage returns the log-probability of `target` instead of picking
};

struct Row {
  std::int32_t token = 0;
  std::int32_t slot = 0;
  std::int32_t position = 0;
  std::uint32_t flags = 0;
  std::int32_t target = 0;  // with kRowScore: the token that follows; travels only then
  bool operator==(const Row&) const = default;
};
// Rows with either flag come back as one PickedToken each.
constexpr bool wants_logits(const Row& row) {
  return (row.flags & (kRowSample | kRowScore)) != 0;
}

// How tokens of a slot are drawn; a fresh slot is greedy.
struct SlotSampling {
  SamplingOptions options;
  std::uint64_t seed = 0;
  std::uint32_t sample = 0;
  bool operator==(const SlotSampling&) const = default;
};

// Page numbers and slots are chosen by the scheduler and mean the same on every stage. Slots also remember, on the last
// stage, which tokens were fed to them (for the repetition penalty) and how to sample.
struct SlotCommand {
  enum class Kind : std::uint8_t {
    kAppendPages = 1,  // `pages` continue the slot's table
    kDrop = 2,         // the slot is as at the start: no pages, no tokens, greedy
    kFork = 3,         // the empty slot takes over the first `count` pages of slot `source`, shared, and its tokens
    kCopyPage = 4,     // the contents of the slot's last page become those of page `source`
    kSampling = 5,     // `sampling` holds from here on
  };
  Kind kind = Kind::kAppendPages;
  std::int32_t slot = 0;
  std::vector<std::int32_t> pages = {};
  std::int32_t source = 0;
  std::int32_t count = 0;
  SlotSampling sampling = {};
  bool operator==(const SlotCommand&) const = default;
};

struct Microbatch {
  std::uint64_t id = 0;
  bool stop = false;  // no more will come: the loops end
  std::vector<SlotCommand> commands;
  std::vector<Row> rows;  // rows of one slot are adjacent and in order of position
  bool operator==(const Microbatch&) const = default;
};

struct PickedToken {
  std::int32_t slot = 0;
  std::int32_t token = 0;
  float logprob = 0.0F;
  bool operator==(const PickedToken&) const = default;
};

struct TokenBatch {
  std::uint64_t id = 0;  // of the microbatch; sent for every one, also when no row asked for a token
  std::vector<PickedToken> tokens;
  bool operator==(const TokenBatch&) const = default;
};

std::vector<std::byte> encode(const Microbatch& microbatch);
std::vector<std::byte> encode(const TokenBatch& tokens);
Microbatch decode_microbatch(std::span<const std::byte> bytes);
TokenBatch decode_token_batch(std::span<const std::byte> bytes);

}  // namespace stagecoach
