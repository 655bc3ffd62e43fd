#include "runtime/page_pool.hpp"

#include "kernels/backend.hpp"
#include "runtime/checksum.hpp"
#include "runtime/context_shards.hpp"

namespace stagecoach {

std::size_t PagePool::Hash::operator()(const Content& content) const {
  return xxh3_of(std::as_bytes(std::span(content.tokens))) ^ (content.before * 0x9e3779b97f4a7c15U);
}

PagePool::PagePool(std::int32_t pages, std::int32_t shards)
    : count_(pages * shards),
      pages_(static_cast<std::size_t>(count_ + shards)),
      shards_(static_cast<std::size_t>(shards), Shard{{}, pages}) {
  for (std::int32_t ends = count_; ends < count_ + shards; ++ends) at(ends).newer = at(ends).older = ends;
  for (std::int32_t page = count_ - 1; page >= 0; --page) {  // lowest numbers first, from the back
    shards_[static_cast<std::size_t>(shard_of(page))].blank.push_back(page);
  }
}

std::int32_t PagePool::shard_of(std::int32_t page) const {
  return shard_of_page(page, static_cast<std::int32_t>(shards_.size()));
}
std::int32_t PagePool::ends_of(std::int32_t page) const {
  return count_ + shard_of(page);
}

PagePool::Content PagePool::content_of(std::uint64_t before, std::span<const std::int32_t> tokens, std::int32_t i) {
  const auto part = tokens.subspan(static_cast<std::size_t>(i) * kPagePositions, kPagePositions);
  return {before, {part.begin(), part.end()}};
}

void PagePool::unlink(Page& page) {
  at(page.newer).older = page.older;
  at(page.older).newer = page.newer;
}

void PagePool::forget(Page& page) {
  if (page.listed != nullptr) known_.erase(known_.find(*page.listed));
  page.listed = nullptr;
  page.id = 0;
}

std::int32_t PagePool::take(std::int32_t shard) {
  Shard& own = shards_[static_cast<std::size_t>(shard)];
  --own.free;
  std::int32_t number = 0;
  if (!own.blank.empty()) {
    number = own.blank.back();
    own.blank.pop_back();
  } else {
    number = at(count_ + shard).newer;  // the oldest of all
    unlink(at(number));
    forget(at(number));
  }
  at(number).users = 1;
  return number;
}

void PagePool::give_back(std::int32_t number) {
  Page& page = at(number);
  if (--page.users > 0) return;
  Shard& own = shards_[static_cast<std::size_t>(shard_of(number))];
  ++own.free;
  if (page.listed == nullptr) {
    page.id = 0;
    own.blank.push_back(number);
    return;
  }
  Page& ends = at(ends_of(number));
  page.older = ends.older;
  page.newer = ends_of(number);
  at(ends.older).newer = number;
  ends.older = number;
}

std::vector<std::int32_t> PagePool::find(std::span<const std::int32_t> tokens, std::int32_t most) {
  std::vector<std::int32_t> found;
  std::uint64_t before = 0;
  for (std::int32_t i = 0; i < most; ++i) {
    const auto holder = known_.find(content_of(before, tokens, i));
    if (holder == known_.end()) break;
    const std::int32_t number = holder->second.page;
    const std::int32_t first_shard = shard_of(found.empty() ? number : found.front());
    if (shard_of(number) != shard_of_index(i, first_shard, static_cast<std::int32_t>(shards_.size()))) break;
    Page& page = at(number);
    if (page.users++ == 0) {
      unlink(page);
      --shards_[static_cast<std::size_t>(shard_of(number))].free;
    }
    found.push_back(number);
    before = holder->second.id;
  }
  return found;
}

void PagePool::remember(std::span<const std::int32_t> tokens, std::span<const std::int32_t> pages, std::int32_t i) {
  Page& page = at(pages[static_cast<std::size_t>(i)]);
  if (page.id != 0) return;
  const std::uint64_t before = i == 0 ? 0 : at(pages[static_cast<std::size_t>(i) - 1]).id;
  if (i > 0 && before == 0) return;  // nobody could find it
  const auto [entry, is_new] =
      known_.try_emplace(content_of(before, tokens, i), Holder{last_id_ + 1, pages[static_cast<std::size_t>(i)]});
  if (is_new) {
    ++last_id_;
    page.listed = &entry->first;
  }
  page.id = entry->second.id;  // another page may hold the same
}

}  // namespace stagecoach
