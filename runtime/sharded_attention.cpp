#include "runtime/sharded_attention.hpp"

#include <utility>

namespace stagecoach {

ShardedAttention::ShardedAttention(Backend& backend, const ShardLinks& links, const ShardedShape& shape)
    : backend_(backend), links_(links), shape_(shape) {
  const ShardedWorkspace& most = shape.workspace;
  memory_ = backend.allocate(most.bytes(size_of(shape.activation)));
  auto* bytes = static_cast<std::byte*>(memory_.data());
  qkv_ = make_tensor(bytes, shape.activation, most.rows, most.qkv);
  parts_ = make_tensor(bytes + aligned(qkv_.bytes()), DType::kFloat32, most.parts, most.part_values);
  const Tensor rows = qkv_.slice(0, most.own_rows), some = parts_.slice(0, most.own_parts);
  for (const std::unique_ptr<Transport>& link : links.to) {
    if (link == nullptr) continue;
    for (const Tensor& place : {rows, rows, some, some}) {  // each both ways
      link->prepare({static_cast<std::byte*>(place.data), static_cast<std::size_t>(place.bytes())});
    }
  }
}

// The memory goes next; after a failure some of it is still on its way.
ShardedAttention::~ShardedAttention() {
  for (const std::unique_ptr<Transport>& link : links_.to) {
    if (link && !link->abandon()) memory_.leave();
  }
}

Tensor ShardedAttention::rows_of(std::int32_t shard) const {
  return qkv_.slice(first_row(shard), own_rows(rows_, {shard, shards()}));
}
Tensor ShardedAttention::own_qkv() const {
  return rows_of(links_.place.shard);
}

// Every shard counts alike, so that all know how much comes from whom.
void ShardedAttention::set_rows(std::span<const std::int32_t> positions,
                                const std::vector<std::span<const std::int32_t>>& tables) {
  rows_ = static_cast<std::int64_t>(positions.size());
  const auto me = static_cast<std::size_t>(links_.place.shard);
  const auto count = static_cast<std::size_t>(shards());
  std::vector<std::int64_t> ours(count), theirs(count);
  std::vector<std::pair<std::size_t, std::int64_t>> own;  // of this shard's rows: who has the part, its number there
  first_.assign(1, 0);
  for (std::int32_t owner = 0; owner < shards(); ++owner) {
    const bool is_own = static_cast<std::size_t>(owner) == me;
    for (std::int64_t r = first_row(owner); r < first_row(owner + 1); ++r) {
      const auto row = static_cast<std::size_t>(r);
      for (std::int32_t segment = 0; segment <= positions[row] / kSegmentPositions; ++segment) {
        const std::int32_t page = tables[row][static_cast<std::size_t>(segment) * kSegmentPages];
        const auto has = static_cast<std::size_t>(shard_of_page(page, shards()));
        if (is_own) own.emplace_back(has, has == me ? ours[me] : theirs[has]++);
        if (has == me) ++ours[static_cast<std::size_t>(owner)];
      }
      if (is_own) first_.push_back(static_cast<std::int32_t>(own.size()));
    }
  }
  std::int64_t next = 0;
  const auto lay_out = [&](const std::vector<std::int64_t>& counts, std::vector<std::int64_t>& begins) {
    begins.clear();
    for (const std::int64_t n : counts) begins.push_back(std::exchange(next, next + n));
    begins.push_back(next);
  };
  lay_out(ours, ours_);
  lay_out(theirs, theirs_);
  numbers_.clear();
  for (const auto& [has, number] : own) {
    numbers_.push_back(static_cast<std::int32_t>((has == me ? ours_[me] : theirs_[has]) + number));
  }
}

void ShardedAttention::send(std::int32_t shard, Tensor tensor) {
  if (tensor.rows == 0) return;
  sending_.push_back({shard, links_.to[static_cast<std::size_t>(shard)]->send(tensor)});
  bytes_sent_ += tensor.bytes();
}
void ShardedAttention::receive(std::int32_t shard, Tensor tensor, std::vector<Move>& moves) {
  if (tensor.rows == 0) return;
  moves.push_back({shard, links_.to[static_cast<std::size_t>(shard)]->receive(tensor)});
}

// Where rows pass through the host, sending takes several steps.
void ShardedAttention::poll_sends() {
  std::erase_if(sending_, [this](const Move& move) {
    return links_.to[static_cast<std::size_t>(move.shard)]->done(move.ticket);
  });
}

void ShardedAttention::settle(std::vector<Move>& moves, const Waiting& waiting) {
  for (const Move& move : moves) {
    while (!links_.to[static_cast<std::size_t>(move.shard)]->done(move.ticket)) {
      poll_sends();
      waiting(move.shard);
    }
  }
  moves.clear();
}

void ShardedAttention::run(const KvPages& kv, float scale, Tensor out, const Progress& progress,
                           const Waiting& waiting) {
  const std::int32_t me = links_.place.shard;
  const auto count_of = [](const std::vector<std::int64_t>& begins, std::int32_t shard) {
    return begins[static_cast<std::size_t>(shard) + 1] - begins[static_cast<std::size_t>(shard)];
  };
  while (!backend_.idle()) progress();  // what reads the places of what comes now
  std::vector<Move> rows, parts_of_others;
  for (std::int32_t i = 1; i < shards(); ++i) {
    const std::int32_t other = (me + i) % shards();
    receive(other, rows_of(other), rows);
    receive(other, parts_.slice(theirs_[static_cast<std::size_t>(other)], count_of(theirs_, other)), parts_of_others);
  }
  for (std::int32_t i = 1; i < shards(); ++i) send((me + i) % shards(), own_qkv());
  settle(rows, waiting);
  const Tensor all = qkv_.slice(0, rows_);
  backend_.append(all, kv);
  for (std::int32_t i = 1; i <= shards(); ++i) {  // its own last
    const std::int32_t shard = (me + i) % shards();
    const Tensor part = parts_.slice(ours_[static_cast<std::size_t>(shard)], count_of(ours_, shard));
    if (part.rows > 0) {
      backend_.attention_parts(all, kv, scale, first_row(shard), first_row(shard + 1) - first_row(shard), part);
    }
    if (shard != me) send(shard, part);
    progress();
    poll_sends();
  }
  settle(parts_of_others, waiting);
  if (out.rows > 0) {
    backend_.merge_parts(parts_.slice(0, theirs_.back()), shape_.n_head, first_, numbers_, out);
  }
  for (poll_sends(); !sending_.empty(); poll_sends()) waiting(sending_.front().shard);
}

}  // namespace stagecoach
