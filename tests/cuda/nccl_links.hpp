// Ranks of an MPI job as stages whose rows go over NCCL, for tests.
#pragma once

#include <fmt/format.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "kernels/cuda/cuda_backend.hpp"
#include "runtime/nccl_transport.hpp"
#include "tests/pipeline/harness.hpp"

namespace stagecoach::test {

// Each rank on the device of its number on this host, as far as there are any.
inline std::unique_ptr<Backend> own_backend() {
  const char* rank = std::getenv("OMPI_COMM_WORLD_LOCAL_RANK");
  const auto devices = static_cast<int>(cuda_devices().size());
  return make_cuda_backend({.device = rank != nullptr ? std::atoi(rank) % devices : 0,
                            .pool_bytes = std::int64_t{64} << 20,
                            .deterministic = true});
}

// The id of each rank's link to the next one. Collective.
inline std::vector<NcclId> nccl_ids(const MpiProcess& process) {
  const NcclId mine = make_nccl_id();
  std::vector<NcclId> ids;
  for (const std::vector<std::byte>& bytes : process.all_gather(mine)) {
    std::memcpy(ids.emplace_back().data(), bytes.data(), sizeof(NcclId));
  }
  return ids;
}

inline std::string name_of_rank(std::int32_t rank) {
  return fmt::format("rank {}", rank);
}

// Of a rank among the first `places`, in stages of so many shards.
inline NcclOptions nccl_options(const MpiProcess& process, std::int32_t places, const std::vector<NcclId>& ids,
                                std::int32_t shards = 1) {
  NcclOptions options;
  const std::int32_t rank = process.rank();
  options.self = name_of_rank(rank);
  if (rank >= shards) {
    options.previous = NcclLink{ids[static_cast<std::size_t>(rank - shards)], name_of_rank(rank - shards)};
  }
  if (rank + shards < places) options.next = NcclLink{ids[static_cast<std::size_t>(rank)], name_of_rank(rank + shards)};
  return options;
}

inline RankLinks nccl_links(const MpiProcess& process, std::int32_t stages, std::int32_t shards) {
  const std::vector<NcclId> chain = nccl_ids(process);
  std::vector<std::vector<NcclId>> further(1);  // [k][rank]: of its link to the shard k further on
  for (std::int32_t k = 1; k < shards; ++k) further.push_back(nccl_ids(process));
  RankLinks links;
  links.transport = [options = nccl_options(process, stages * shards, chain, shards)](Backend& backend) {
    return make_nccl_transport(options, device_queue(backend));
  };
  links.to_shard = [further, shards, rank = process.rank()](Backend& backend, std::int32_t other) {
    const auto link = [&](std::int32_t from, std::int32_t to) {
      const auto k = static_cast<std::size_t>((to - from + shards) % shards);
      return NcclLink{further[k][static_cast<std::size_t>(from)], name_of_rank(other)};
    };
    NcclOptions options;
    options.self = name_of_rank(rank);
    options.previous = link(other, rank);
    options.next = link(rank, other);
    return make_nccl_transport(options, device_queue(backend));
  };
  return links;
}

}  // namespace stagecoach::test
