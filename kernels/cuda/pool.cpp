#include "kernels/cuda/pool.hpp"

#include <algorithm>
#include <iterator>

namespace stagecoach::cuda {

PoolMap::PoolMap(std::int64_t bytes) {
  if (bytes >= kAlignment) free_[0] = bytes / kAlignment * kAlignment;
}

std::int64_t PoolMap::rounded(std::int64_t bytes) {
  return (std::max<std::int64_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
}

std::optional<std::int64_t> PoolMap::take(std::int64_t bytes) {
  const std::int64_t wanted = rounded(bytes);
  const auto found = std::ranges::find_if(free_, [&](const auto& part) { return part.second >= wanted; });
  if (found == free_.end()) return std::nullopt;
  const auto [offset, size] = *found;
  free_.erase(found);
  if (size > wanted) free_[offset + wanted] = size - wanted;
  used_ += wanted;
  peak_ = std::max(peak_, used_);
  return offset;
}

void PoolMap::give_back(std::int64_t offset, std::int64_t bytes) {
  std::int64_t size = rounded(bytes);
  used_ -= size;
  auto next = free_.lower_bound(offset);
  if (next != free_.end() && offset + size == next->first) {
    size += next->second;
    next = free_.erase(next);
  }
  if (next != free_.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second == offset) {
      before->second += size;
      return;
    }
  }
  free_[offset] = size;
}

std::int64_t PoolMap::largest_free() const {
  std::int64_t largest = 0;
  for (const auto& [offset, size] : free_) largest = std::max(largest, size);
  return largest;
}

}  // namespace stagecoach::cuda
