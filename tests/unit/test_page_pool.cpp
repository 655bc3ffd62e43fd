// Page numbers: never given out twice, never lost, and found again exactly when they hold the same beginning.
#include <doctest/doctest.h>

#include <map>
#include <random>
#include <set>

#include "kernels/backend.hpp"
#include "runtime/page_pool.hpp"

using namespace stagecoach;

namespace {

std::vector<std::int32_t> prompt_of(std::size_t pages, std::int32_t token) {
  return std::vector<std::int32_t>(pages * kPagePositions, token);
}

// Takes pages for a prompt and says what they hold, as far as it is not known.
std::vector<std::int32_t> fill(PagePool& pool, const std::vector<std::int32_t>& tokens) {
  const auto pages = static_cast<std::int32_t>(tokens.size()) / kPagePositions;
  std::vector<std::int32_t> mine = pool.find(tokens, pages);
  while (static_cast<std::int32_t>(mine.size()) < pages) {
    mine.push_back(pool.take());
    pool.remember(tokens, mine, static_cast<std::int32_t>(mine.size()) - 1);
  }
  return mine;
}

void give_back(PagePool& pool, std::vector<std::int32_t> pages) {
  for (; !pages.empty(); pages.pop_back()) pool.give_back(pages.back());
}

}  // namespace

TEST_CASE("shards have pages of their own, and only pages in turn are found") {
  PagePool pool(20, 2);
  std::vector<std::int32_t> pages;
  const std::vector<std::int32_t> tokens = prompt_of(18, 5);
  for (std::int32_t i = 0; i < 18; ++i) {
    pages.push_back(pool.take(i < kSegmentPages ? 1 : 0));
    CHECK(pages.back() % 2 == (i < kSegmentPages ? 1 : 0));
    pool.remember(tokens, pages, i);
  }
  CHECK(pool.free(0) == 18);
  CHECK(pool.free(1) == 4);
  give_back(pool, pages);
  CHECK(pool.find(tokens, 18) == pages);
  CHECK(pool.free(0) == 18);
  give_back(pool, pages);
  // The same tokens, dealt out from the other shard: what is found ends where they would not be in turn.
  for (int i = 0; i < 20; ++i) pool.take(1);  // forgets those of the first segment
  std::vector<std::int32_t> others;
  for (std::int32_t i = 0; i < kSegmentPages; ++i) {
    others.push_back(pool.take(0));
    pool.remember(tokens, others, i);
  }
  CHECK(pool.find(tokens, 18) == others);
}

TEST_CASE("a beginning is found while its pages are in use and afterwards, until they are needed") {
  PagePool pool(6);
  const std::vector<std::int32_t> first = fill(pool, prompt_of(3, 5));
  CHECK(pool.free() == 3);
  std::vector<std::int32_t> longer = prompt_of(3, 5);
  longer.back() = 6;
  const std::vector<std::int32_t> second = fill(pool, longer);
  CHECK(std::vector(second.begin(), second.begin() + 2) == std::vector(first.begin(), first.begin() + 2));
  CHECK(second[2] != first[2]);
  CHECK(pool.free() == 2);
  give_back(pool, first);
  CHECK(pool.free() == 3);  // two are still the second's
  give_back(pool, second);
  CHECK(pool.free() == 6);
  CHECK(pool.find(prompt_of(2, 4), 2).empty());
  const std::vector<std::int32_t> again = pool.find(prompt_of(3, 5), 3);
  CHECK(again == first);
  CHECK(pool.find(prompt_of(3, 5), 1) == std::vector{first[0]});
  pool.give_back(first[0]);
  give_back(pool, again);
  // Four others take two blank pages and the two that were the last to be looked up: the beginning stays.
  std::vector<std::int32_t> others;
  for (int i = 0; i < 4; ++i) others.push_back(pool.take());
  CHECK(pool.find(prompt_of(3, 5), 3) == std::vector(first.begin(), first.begin() + 2));
}

TEST_CASE("equal contents in two pages are one beginning, and equal tokens after others are not") {
  PagePool pool(8);
  const std::vector<std::int32_t> tokens = prompt_of(2, 1);
  std::vector<std::int32_t> a{pool.take(), pool.take()}, b{pool.take(), pool.take()};
  for (std::int32_t i = 0; i < 2; ++i) {
    pool.remember(tokens, a, i);
    pool.remember(tokens, b, i);  // computed at the same time
  }
  CHECK(pool.find(tokens, 2) == a);
  CHECK(pool.find(prompt_of(1, 2), 1).empty());
  give_back(pool, a);
  give_back(pool, a);
  give_back(pool, b);
  CHECK(pool.free() == 8);
  CHECK(pool.find(tokens, 2) == a);
}

TEST_CASE("random use against a list of who has what") {
  const unsigned seed = std::random_device{}();
  CAPTURE(seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 50; ++round) {
    const auto pages = static_cast<std::int32_t>(4 + random() % 30);
    PagePool pool(pages);
    std::map<std::int32_t, int> users;
    std::map<std::int32_t, std::vector<std::int32_t>> holds;  // all tokens up to the end of the page
    std::vector<std::vector<std::int32_t>> taken;
    for (int step = 0; step < 300; ++step) {
      if (!taken.empty() && random() % 2 == 0) {
        const std::size_t which = random() % taken.size();
        for (const std::int32_t page : taken[which]) --users[page];
        give_back(pool, taken[which]);
        taken.erase(taken.begin() + static_cast<std::ptrdiff_t>(which));
      } else {
        std::vector<std::int32_t> tokens;
        for (auto n = 1 + random() % 4; n > 0; --n) {
          const auto token = static_cast<std::int32_t>(random() % 2);
          tokens.insert(tokens.end(), kPagePositions, token);
        }
        const auto wanted = static_cast<std::int32_t>(tokens.size()) / kPagePositions;
        std::vector<std::int32_t> mine = pool.find(tokens, wanted);
        for (std::size_t i = 0; i < mine.size(); ++i) {
          REQUIRE(holds[mine[i]] ==
                  std::vector(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>((i + 1) * kPagePositions)));
        }
        for (const std::int32_t page : mine) ++users[page];
        while (static_cast<std::int32_t>(mine.size()) < wanted && pool.free() > 0) {
          const std::int32_t page = pool.take();
          REQUIRE(users[page] == 0);
          ++users[page];
          mine.push_back(page);
          holds[page].assign(tokens.begin(),
                             tokens.begin() + static_cast<std::ptrdiff_t>(mine.size() * kPagePositions));
          pool.remember(tokens, mine, static_cast<std::int32_t>(mine.size()) - 1);
        }
        taken.push_back(mine);
      }
      std::int32_t used = 0;
      for (const auto& [page, count] : users) used += count > 0 ? 1 : 0;
      REQUIRE(pool.free() == pages - used);
    }
  }
}
