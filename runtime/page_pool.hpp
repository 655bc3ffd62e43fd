// The numbers of the KV pages: who uses them, and which hold the beginning of a prompt that the next one may have too.
//
// A page may have several users. One without any is free, but what it holds stays known until it is needed for
// something else, the longest unused first: so prompts with a common beginning share its pages, also after the first
// has ended. Equality is of tokens, not of hashes; the K and V of equal tokens at equal positions after equal ones are
// the same bits. With context shards each has as many pages, numbered as context_shards.hpp says.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

namespace stagecoach {

class PagePool {
 public:
  // `pages` of each shard.
  explicit PagePool(std::int32_t pages, std::int32_t shards = 1);

  std::int32_t free(std::int32_t shard = 0) const { return shards_[static_cast<std::size_t>(shard)].free; }
  // A page of a shard for one user; there must be a free one.
  std::int32_t take(std::int32_t shard = 0);
  void give_back(std::int32_t page);

  // Pages that hold tokens[0..n * kPagePositions), as many as are known, at most `most`, and of the shards in turn;
  // each has one user more.
  std::vector<std::int32_t> find(std::span<const std::int32_t> tokens, std::int32_t most);
  // From now on page `pages[i]`, which is in use, holds tokens[i * kPagePositions ..), after what pages[i - 1] holds.
  void remember(std::span<const std::int32_t> tokens, std::span<const std::int32_t> pages, std::int32_t i);

 private:
  // Tokens of a page, after those of the pages before it.
  struct Content {
    std::uint64_t before = 0;  // id of what is before; 0: nothing
    std::vector<std::int32_t> tokens;
    bool operator==(const Content&) const = default;
  };
  struct Hash {
    std::size_t operator()(const Content& content) const;
  };
  struct Holder {
    std::uint64_t id = 0;
    std::int32_t page = 0;
  };
  struct Page {
    std::int32_t users = 0;
    std::int32_t newer = 0, older = 0;  // in the list of those that are free and hold something
    std::uint64_t id = 0;               // of what it holds; 0: unknown
    const Content* listed = nullptr;    // when it is found by that
  };

  struct Shard {
    std::vector<std::int32_t> blank;
    std::int32_t free = 0;
  };

  std::int32_t shard_of(std::int32_t page) const;
  // Where the list of the shard of `page` begins and ends.
  std::int32_t ends_of(std::int32_t page) const;
  Page& at(std::int32_t page) { return pages_[static_cast<std::size_t>(page)]; }
  void unlink(Page& page);
  void forget(Page& page);
  static Content content_of(std::uint64_t before, std::span<const std::int32_t> tokens, std::int32_t i);

  std::int32_t count_ = 0;   // pages
  std::vector<Page> pages_;  // and one more for each shard, where its list begins and ends
  std::vector<Shard> shards_;
  std::uint64_t last_id_ = 0;
  std::unordered_map<Content, Holder, Hash> known_;
};

}  // namespace stagecoach
