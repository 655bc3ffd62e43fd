#include "runtime/kv_cache.hpp"

#include <fmt/format.h>

namespace stagecoach {

KvCache::KvCache(Backend& backend, const KvShape& shape)
    : shape_(shape), tables_(static_cast<std::size_t>(shape.slots)) {
  const std::int64_t pool_bytes = shape.pages * backend.kv_page_bytes(shape.n_head, shape.head_dim, shape.dtype);
  for (std::int32_t block = 0; block < shape.blocks; ++block) pools_.push_back(backend.allocate(pool_bytes));
}

void KvCache::apply(std::span<const SlotCommand> commands) {
  for (const SlotCommand& command : commands) {
    if (command.slot < 0 || command.slot >= shape_.slots) {
      throw WireError(fmt::format("slot {} is outside 0 to {}", command.slot, shape_.slots - 1));
    }
    std::vector<std::int32_t>& table = tables_[static_cast<std::size_t>(command.slot)];
    if (command.kind == SlotCommand::Kind::kDrop) {
      table.clear();
      continue;
    }
    for (const std::int32_t page : command.pages) {
      if (page < 0 || page >= shape_.pages) {
        throw WireError(fmt::format("page {} is outside 0 to {}", page, shape_.pages - 1));
      }
      table.push_back(page);
    }
  }
}

std::span<const std::int32_t> KvCache::table(std::int32_t slot) const {
  if (slot < 0 || slot >= shape_.slots) {
    throw WireError(fmt::format("slot {} is outside 0 to {}", slot, shape_.slots - 1));
  }
  return tables_[static_cast<std::size_t>(slot)];
}

KvPages KvCache::pages(std::int32_t local_block) const {
  const Buffer& pool = pools_.at(static_cast<std::size_t>(local_block));
  return {pool.data(), shape_.dtype, shape_.pages, shape_.n_head, shape_.head_dim};
}

std::int64_t KvCache::bytes() const {
  std::int64_t total = 0;
  for (const Buffer& pool : pools_) total += static_cast<std::int64_t>(pool.bytes());
  return total;
}

}  // namespace stagecoach
