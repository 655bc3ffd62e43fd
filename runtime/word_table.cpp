#include "runtime/word_table.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

namespace stagecoach {
namespace {

// Eight bytes a step, each mixed by a multiplication with an odd constant; high bits are the good ones.
std::uint64_t hash_of(std::string_view word) {
  constexpr std::uint64_t kFactor = 0x9E3779B97F4A7C15U;
  std::uint64_t hash = word.size();
  while (word.size() >= sizeof(std::uint64_t)) {
    std::uint64_t part;
    std::memcpy(&part, word.data(), sizeof part);
    hash = (std::rotl(hash, 23) ^ part) * kFactor;
    word.remove_prefix(sizeof part);
  }
  std::uint64_t part = 0;
  for (const char c : word) part = part << 8 | static_cast<unsigned char>(c);
  hash = (std::rotl(hash, 23) ^ part) * kFactor;
  return (hash ^ hash >> 32) * kFactor;
}

}  // namespace

WordTable::WordTable(std::size_t capacity) {
  const std::size_t size = std::bit_ceil(std::max<std::size_t>(2 * capacity, 2));
  slots_.assign(size, {nullptr, 0, kAbsent});
  shift_ = 64 - std::countr_zero(size);
}

void WordTable::insert(std::string_view word, std::int32_t id) {
  std::size_t slot = static_cast<std::size_t>(hash_of(word) >> shift_);
  while (slots_[slot].id != kAbsent) slot = (slot + 1) & (slots_.size() - 1);
  slots_[slot] = {word.data(), static_cast<std::uint32_t>(word.size()), id};
  longest_ = std::max(longest_, word.size());
}

std::int32_t WordTable::find(std::string_view word) const {
  if (word.size() > longest_) return kAbsent;
  for (std::size_t slot = static_cast<std::size_t>(hash_of(word) >> shift_);; slot = (slot + 1) & (slots_.size() - 1)) {
    const Slot& candidate = slots_[slot];
    if (candidate.id == kAbsent || std::string_view(candidate.bytes, candidate.length) == word) return candidate.id;
  }
}

}  // namespace stagecoach
