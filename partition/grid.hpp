// How the ranks of a job are laid out: replicas of one pipeline, each a row of stages, each of these some context
// shards, which share the tokens of a prompt.
//
// World rank = (replica * stages + stage) * shards + shard. Stages of one process that are threads have the same
// places.
#pragma once

#include <cstdint>
#include <string>

namespace stagecoach {

struct Grid {
  std::int32_t replicas = 1;
  std::int32_t stages = 1;
  std::int32_t shards = 1;

  std::int32_t of_replica() const { return stages * shards; }  // its places
  std::int32_t size() const { return replicas * of_replica(); }
  std::int32_t replica(std::int32_t place) const { return place / of_replica(); }
  std::int32_t stage(std::int32_t place) const { return place / shards % stages; }
  std::int32_t shard(std::int32_t place) const { return place % shards; }
  std::int32_t first(std::int32_t replica) const { return replica * of_replica(); }  // place of its leader
  bool leads(std::int32_t place) const { return place == first(replica(place)); }    // its replica
};

// What was asked for, 0: nothing; `ranks` that there are, 1: a process that may have them all as threads.
// Throws PlanError unless replicas x stages x shards are the ranks; the message says how many would do.
Grid make_grid(std::int32_t ranks, std::int32_t replicas, std::int32_t stages, std::int32_t shards = 1);

}  // namespace stagecoach
