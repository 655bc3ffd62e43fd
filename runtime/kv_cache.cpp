#include "runtime/kv_cache.hpp"

#include <fmt/format.h>

namespace stagecoach {

KvCache::KvCache(Backend& backend, const KvShape& shape)
    : backend_(backend), shape_(shape), tables_(static_cast<std::size_t>(shape.slots)) {
  const std::int64_t pool_bytes = shape.pages * backend.kv_page_bytes(shape.n_head, shape.head_dim, shape.dtype);
  for (std::int32_t block = 0; block < shape.blocks; ++block) pools_.push_back(backend.allocate(pool_bytes));
}

void KvCache::apply(std::span<const SlotCommand> commands) {
  for (const SlotCommand& command : commands) {
    std::vector<std::int32_t>& table = at(command.slot);
    switch (command.kind) {
      case SlotCommand::Kind::kAppendPages:
        for (const std::int32_t page : command.pages) {
          require_page(page);
          table.push_back(page);
        }
        break;
      case SlotCommand::Kind::kDrop:
        table.clear();
        break;
      case SlotCommand::Kind::kFork:
        fork(command);
        break;
      case SlotCommand::Kind::kCopyPage:
        copy_page(command);
        break;
      case SlotCommand::Kind::kSampling:
        break;  // of no concern here
    }
  }
}

void KvCache::fork(const SlotCommand& command) {
  std::vector<std::int32_t>& table = at(command.slot);
  const std::vector<std::int32_t>& source = at(command.source);
  if (!table.empty() || command.count < 0 || static_cast<std::size_t>(command.count) > source.size()) {
    throw WireError(fmt::format("slot {} with {} pages cannot take over {} pages of slot {}, which has {}",
                                command.slot, table.size(), command.count, command.source, source.size()));
  }
  table.assign(source.begin(), source.begin() + command.count);
}

void KvCache::copy_page(const SlotCommand& command) {
  require_page(command.source);
  const std::vector<std::int32_t>& table = at(command.slot);
  if (table.empty() || table.back() == command.source) {
    throw WireError(fmt::format("slot {} has no page of its own to copy page {} to", command.slot, command.source));
  }
  const auto [shard, shards] = shape_.place;
  if (shard_of_page(command.source, shards) != shard_of_page(table.back(), shards)) {
    throw WireError(fmt::format("page {} cannot be copied to page {} of another shard", command.source, table.back()));
  }
  if (shard_of_page(command.source, shards) != shard) return;
  for (std::int32_t block = 0; block < shape_.blocks; ++block) {
    backend_.copy_page(pages(block), page_in_shard(command.source, shards), page_in_shard(table.back(), shards));
  }
}

std::vector<std::int32_t>& KvCache::at(std::int32_t slot) {
  if (slot < 0 || slot >= shape_.slots) {
    throw WireError(fmt::format("slot {} is outside 0 to {}", slot, shape_.slots - 1));
  }
  return tables_[static_cast<std::size_t>(slot)];
}

void KvCache::require_page(std::int32_t page) const {
  const std::int32_t all = shape_.pages * shape_.place.shards;
  if (page < 0 || page >= all) throw WireError(fmt::format("page {} is outside 0 to {}", page, all - 1));
}

std::span<const std::int32_t> KvCache::table(std::int32_t slot) const {
  return const_cast<KvCache*>(this)->at(slot);
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
