// Which parts of one allocation are given out: offsets only, no memory.
//
// First fit; neighbours that are both free become one part.
#pragma once

#include <cstdint>
#include <map>
#include <optional>

namespace stagecoach::cuda {

class PoolMap {
 public:
  static constexpr std::int64_t kAlignment = 256;

  explicit PoolMap(std::int64_t bytes);

  // Offset, a multiple of kAlignment, of a part of max(bytes, 1) bytes; nothing when no free part is large enough.
  std::optional<std::int64_t> take(std::int64_t bytes);
  // What `take` gave for `bytes`.
  void give_back(std::int64_t offset, std::int64_t bytes);

  // What a part of `bytes` bytes takes.
  static std::int64_t rounded(std::int64_t bytes);
  std::int64_t used() const { return used_; }
  std::int64_t peak() const { return peak_; }
  std::int64_t largest_free() const;

 private:
  std::map<std::int64_t, std::int64_t> free_;  // offset: bytes
  std::int64_t used_ = 0;
  std::int64_t peak_ = 0;
};

}  // namespace stagecoach::cuda
