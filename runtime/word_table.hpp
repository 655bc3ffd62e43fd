#pragma once

// Open-addressing map from the bytes of a word to a token id: the fast path of encoding. Immutable once
// filled. Does not own the bytes that it is filled with; they must outlive it.

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace stagecoach {

class WordTable {
 public:
  static constexpr std::int32_t kAbsent = -1;

  // At most `capacity` insertions may follow.
  explicit WordTable(std::size_t capacity);

  // The word must not be there yet.
  void insert(std::string_view word, std::int32_t id);
  std::int32_t find(std::string_view word) const;  // kAbsent when not there

 private:
  struct Slot {
    const char* bytes;
    std::uint32_t length;
    std::int32_t id;
  };

  std::vector<Slot> slots_;  // a power of two, at most half full
  int shift_;
  std::size_t longest_ = 0;  // a longer word need not be hashed: it may be megabytes long
};

}  // namespace stagecoach
