#include "runtime/bpe.hpp"

#include <algorithm>
#include <bit>
#include <cassert>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>

namespace stagecoach {
namespace {

constexpr std::uint64_t kEmptyKey = std::numeric_limits<std::uint64_t>::max();  // no pair: ids are not negative
constexpr std::uint32_t kNoRank = std::numeric_limits<std::uint32_t>::max();
constexpr std::uint32_t kNobody = std::numeric_limits<std::uint32_t>::max();
constexpr Merge kNoMerge = {kNoRank, -1};

// Up to here searching the whole word for its best pair is faster than keeping a heap (words average 5
// bytes).
constexpr std::size_t kShortWord = 48;

using Symbol = BpeWorkspace::Symbol;

std::uint64_t key_of(std::int32_t left, std::int32_t right) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 | static_cast<std::uint32_t>(right);
}

Merge merge_of(const MergeTable& table, std::int32_t left, std::int32_t right) {
  const Merge* merge = table.find(left, right);
  return merge == nullptr ? kNoMerge : *merge;
}

void fill_symbols(const MergeTable& table, const std::vector<std::int32_t>& ids, std::vector<Symbol>& symbols) {
  const std::size_t count = ids.size();
  symbols.resize(count);
  for (std::size_t i = 0; i < count; ++i) {
    const bool last = i + 1 == count;
    symbols[i] = {ids[i], i == 0 ? kNobody : static_cast<std::uint32_t>(i - 1),
                  last ? kNobody : static_cast<std::uint32_t>(i + 1),
                  last ? kNoMerge : merge_of(table, ids[i], ids[i + 1])};
  }
}

// Symbols lie densely here: a merge closes the gap, which moves few bytes.
void merge_short(const MergeTable& table, std::vector<Symbol>& symbols) {
  const auto by_rank = [](const Symbol& a, const Symbol& b) { return a.merge.rank < b.merge.rank; };
  while (symbols.size() > 1) {
    const auto best = std::min_element(symbols.begin(), symbols.end(), by_rank);  // the leftmost of equals
    if (best->merge.rank == kNoRank) return;
    best->id = best->merge.id;
    symbols.erase(best + 1);
    best->merge = best + 1 == symbols.end() ? kNoMerge : merge_of(table, best->id, (best + 1)->id);
    if (best != symbols.begin()) (best - 1)->merge = merge_of(table, (best - 1)->id, best->id);
  }
}

// Symbols form a linked list here. Queue entries are not removed when their pair goes; such an entry is
// recognised when it comes up, because ranks are unique and the symbol's own merge no longer has that rank.
void merge_long(const MergeTable& table, std::vector<Symbol>& symbols, std::vector<std::uint64_t>& queue) {
  const auto entry_of = [](const Merge& merge, std::uint32_t position) {
    return static_cast<std::uint64_t>(merge.rank) << 32 | position;
  };
  queue.clear();
  for (std::size_t i = 0; i < symbols.size(); ++i) {
    if (symbols[i].merge.rank != kNoRank) queue.push_back(entry_of(symbols[i].merge, static_cast<std::uint32_t>(i)));
  }
  std::make_heap(queue.begin(), queue.end(), std::greater<>());
  const auto update = [&](std::uint32_t position) {
    Symbol& symbol = symbols[position];
    symbol.merge = symbol.next == kNobody ? kNoMerge : merge_of(table, symbol.id, symbols[symbol.next].id);
    if (symbol.merge.rank == kNoRank) return;
    queue.push_back(entry_of(symbol.merge, position));
    std::push_heap(queue.begin(), queue.end(), std::greater<>());
  };
  while (!queue.empty()) {
    std::pop_heap(queue.begin(), queue.end(), std::greater<>());
    const std::uint64_t entry = queue.back();
    queue.pop_back();
    const auto position = static_cast<std::uint32_t>(entry);
    Symbol& left = symbols[position];
    if (left.merge.rank != entry >> 32) continue;
    Symbol& right = symbols[left.next];
    left.id = left.merge.id;
    left.next = right.next;
    right.merge = kNoMerge;
    if (left.next != kNobody) symbols[left.next].previous = position;
    update(position);
    if (left.previous != kNobody) update(left.previous);
  }
}

}  // namespace

MergeTable::MergeTable(std::size_t capacity) {
  const std::size_t size = std::bit_ceil(std::max<std::size_t>(2 * capacity, 2));
  slots_.assign(size, {kEmptyKey, kNoMerge});
  shift_ = 64 - std::countr_zero(size);
}

std::size_t MergeTable::slot_of(std::uint64_t key) const {
  std::size_t slot = static_cast<std::size_t>((key ^ key >> 29) * 0x9E3779B97F4A7C15U >> shift_);
  while (slots_[slot].key != key && slots_[slot].key != kEmptyKey) slot = (slot + 1) & (slots_.size() - 1);
  return slot;
}

bool MergeTable::insert(std::int32_t left, std::int32_t right, Merge merge) {
  assert(left >= 0 && right >= 0);
  Slot& slot = slots_[slot_of(key_of(left, right))];
  if (slot.key != kEmptyKey) return false;
  slot = {key_of(left, right), merge};
  return true;
}

const Merge* MergeTable::find(std::int32_t left, std::int32_t right) const {
  const Slot& slot = slots_[slot_of(key_of(left, right))];
  return slot.key == kEmptyKey ? nullptr : &slot.merge;
}

void merge_pairs(const MergeTable& table, std::vector<std::int32_t>& ids, BpeWorkspace& workspace) {
  if (ids.size() >= kNobody) {
    throw std::length_error("a single word of " + std::to_string(ids.size()) + " bytes cannot be tokenized, at most " +
                            std::to_string(kNobody - 1));
  }
  std::vector<Symbol>& symbols = workspace.symbols;
  fill_symbols(table, ids, symbols);
  ids.clear();
  if (symbols.size() <= kShortWord) {
    merge_short(table, symbols);
    for (const Symbol& symbol : symbols) ids.push_back(symbol.id);
    return;
  }
  merge_long(table, symbols, workspace.queue);
  for (std::uint32_t i = 0; i != kNobody; i = symbols[i].next) ids.push_back(symbols[i].id);
}

}  // namespace stagecoach
