#include "runtime/page_pool.hpp"

#include "kernels/backend.hpp"
#include "runtime/checksum.hpp"

namespace stagecoach {

std::size_t PagePool::Hash::operator()(const Content& content) const {
  return xxh3_of(std::as_bytes(std::span(content.tokens))) ^ (content.before * 0x9e3779b97f4a7c15U);
}

PagePool::PagePool(std::int32_t pages) : pages_(static_cast<std::size_t>(pages) + 1), free_(pages) {
  Page& ends = pages_.back();
  ends.newer = ends.older = pages;
  for (std::int32_t page = pages - 1; page >= 0; --page) blank_.push_back(page);  // lowest numbers first, from the back
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

std::int32_t PagePool::take() {
  --free_;
  std::int32_t number = 0;
  if (!blank_.empty()) {
    number = blank_.back();
    blank_.pop_back();
  } else {
    number = pages_.back().newer;  // the oldest of all
    unlink(at(number));
    forget(at(number));
  }
  at(number).users = 1;
  return number;
}

void PagePool::give_back(std::int32_t number) {
  Page& page = at(number);
  if (--page.users > 0) return;
  ++free_;
  if (page.listed == nullptr) {
    page.id = 0;
    blank_.push_back(number);
    return;
  }
  Page& ends = pages_.back();
  page.older = ends.older;
  page.newer = static_cast<std::int32_t>(pages_.size()) - 1;
  at(ends.older).newer = number;
  ends.older = number;
}

std::vector<std::int32_t> PagePool::find(std::span<const std::int32_t> tokens, std::int32_t most) {
  std::vector<std::int32_t> found;
  std::uint64_t before = 0;
  for (std::int32_t i = 0; i < most; ++i) {
    const auto holder = known_.find(content_of(before, tokens, i));
    if (holder == known_.end()) break;
    Page& page = at(holder->second.page);
    if (page.users++ == 0) {
      unlink(page);
      --free_;
    }
    found.push_back(holder->second.page);
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
