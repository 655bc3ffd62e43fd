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

// Of a rank among the first `stages`.
inline NcclOptions nccl_options(const MpiProcess& process, std::int32_t stages, const std::vector<NcclId>& ids) {
  NcclOptions options;
  const auto name = [](std::int32_t rank) { return fmt::format("rank {}", rank); };
  const std::int32_t rank = process.rank();
  options.self = name(rank);
  if (rank > 0) options.previous = NcclLink{ids[static_cast<std::size_t>(rank) - 1], name(rank - 1)};
  if (rank + 1 < stages) options.next = NcclLink{ids[static_cast<std::size_t>(rank)], name(rank + 1)};
  return options;
}

inline RankLinks nccl_links(const MpiProcess& process, std::int32_t stages) {
  const std::vector<NcclId> ids = nccl_ids(process);
  RankLinks links;
  links.transport = [options = nccl_options(process, stages, ids)](Backend& backend) {
    return make_nccl_transport(options, device_queue(backend));
  };
  return links;
}

}  // namespace stagecoach::test
