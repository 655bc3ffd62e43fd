#pragma once

// Byte-pair merging over token ids. A merge table says which neighbours may join, into what, and in which
// order; merging repeatedly joins the pair of lowest rank, leftmost first, until no pair is in the table.
// Knows neither text nor files. The table is immutable once filled and may be shared by threads; a
// BpeWorkspace belongs to one thread.

#include <cstddef>
#include <cstdint>
#include <vector>

namespace stagecoach {

struct Merge {
  std::uint32_t rank;  // line order: lower joins first; unique in a table
  std::int32_t id;     // the joined token
};

// Open-addressing map (left id, right id) -> Merge. Ids are not negative.
class MergeTable {
 public:
  explicit MergeTable(std::size_t capacity = 0);

  // False, and no change, when the pair is there already. At most `capacity` pairs.
  bool insert(std::int32_t left, std::int32_t right, Merge merge);
  const Merge* find(std::int32_t left, std::int32_t right) const;

 private:
  struct Slot {
    std::uint64_t key;
    Merge merge;
  };
  std::size_t slot_of(std::uint64_t key) const;

  std::vector<Slot> slots_;  // a power of two, at most half full
  int shift_ = 0;
};

// Scratch memory of merge_pairs, kept between words so that a word costs no allocation.
struct BpeWorkspace {
  struct Symbol {
    std::int32_t id;
    std::uint32_t previous;
    std::uint32_t next;
    Merge merge;  // with the next symbol; rank kNoRank when they do not join
  };
  std::vector<Symbol> symbols;
  std::vector<std::uint64_t> queue;  // rank << 32 | position: a heap of these yields lowest rank, then leftmost
};

// Replaces `ids` by the merged ids. O(n log n) for any content; at most 2^32 - 2 ids (throws
// std::length_error).
void merge_pairs(const MergeTable& table, std::vector<std::int32_t>& ids, BpeWorkspace& workspace);

}  // namespace stagecoach
