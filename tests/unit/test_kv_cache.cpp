#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

#include "runtime/kv_cache.hpp"

using namespace stagecoach;

namespace {

SlotCommand append(std::int32_t slot, std::vector<std::int32_t> pages) {
  return {SlotCommand::Kind::kAppendPages, slot, std::move(pages)};
}
SlotCommand fork(std::int32_t slot, std::int32_t source, std::int32_t count) {
  SlotCommand command{SlotCommand::Kind::kFork, slot};
  command.source = source;
  command.count = count;
  return command;
}
SlotCommand copy_page(std::int32_t slot, std::int32_t source) {
  SlotCommand command{SlotCommand::Kind::kCopyPage, slot};
  command.source = source;
  return command;
}

using Pages = std::vector<std::int32_t>;

Pages table(const KvCache& cache, std::int32_t slot) {
  const auto pages = cache.table(slot);
  return {pages.begin(), pages.end()};
}

}  // namespace

TEST_CASE("a fork shares pages, and copies one in every block") {
  const auto backend = make_cpu_backend({});
  KvCache cache(*backend, {3, 2, 4, DType::kFloat32, 6, 4});
  const std::int64_t page_bytes = backend->kv_page_bytes(2, 4, DType::kFloat32);
  CHECK(cache.bytes() == 3 * 6 * page_bytes);
  cache.apply(std::vector{append(0, {5, 1, 3})});
  std::vector<std::byte> content(static_cast<std::size_t>(page_bytes));
  for (std::int32_t block = 0; block < 3; ++block) {
    std::fill(content.begin(), content.end(), static_cast<std::byte>(block + 1));
    backend->upload(static_cast<std::byte*>(cache.pages(block).base) + 3 * page_bytes, content.data(), page_bytes);
  }
  cache.apply(std::vector{fork(2, 0, 2), append(2, {0}), copy_page(2, 3)});
  CHECK(table(cache, 0) == Pages{5, 1, 3});
  CHECK(table(cache, 2) == Pages{5, 1, 0});
  for (std::int32_t block = 0; block < 3; ++block) {
    backend->download(content.data(), cache.pages(block).base, page_bytes);
    CHECK(std::all_of(content.begin(), content.end(),
                      [&](std::byte b) { return b == static_cast<std::byte>(block + 1); }));
  }
  cache.apply(std::vector{SlotCommand{SlotCommand::Kind::kDrop, 0}});
  CHECK(table(cache, 0).empty());
  CHECK(table(cache, 2) == Pages{5, 1, 0});
}

TEST_CASE("commands that no scheduler sends are refused") {
  const auto backend = make_cpu_backend({});
  KvCache cache(*backend, {1, 1, 4, DType::kFloat32, 4, 2});
  const auto refuses = [&](const SlotCommand& command) {
    CHECK_THROWS_AS(cache.apply(std::vector{command}), WireError);
  };
  cache.apply(std::vector{append(0, {1, 2})});
  refuses(append(2, {0}));
  refuses(append(-1, {0}));
  refuses(append(0, {4}));
  refuses(append(0, {-1}));
  refuses(fork(0, 1, 0));  // not empty
  refuses(fork(1, 0, 3));
  refuses(fork(1, 0, -1));
  refuses(fork(1, 2, 0));
  refuses(copy_page(0, 4));
  refuses(copy_page(0, 2));  // onto itself
  refuses(copy_page(1, 2));  // nothing to copy to
  CHECK_THROWS_AS(cache.table(2), WireError);
}
