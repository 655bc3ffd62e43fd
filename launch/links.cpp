#include "launch/links.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "kernels/cuda/cuda_backend.hpp"
#include "launch/interrupt.hpp"
#include "launch/log.hpp"
#include "runtime/nccl_transport.hpp"
#include "runtime/ring_test.hpp"
#include "runtime/staged_transport.hpp"

namespace stagecoach {
namespace {

// A rank whose links are sound waits so much longer than one that may be silent.
constexpr double kPatience = 40.0;

// With more, each rank would have more streams of links than a GPU has queues by default, and one that waits could
// stand in front of what its peer waits for: their exchange goes through the hosts' memory, over MPI.
constexpr std::int32_t kMostNcclShards = 2;

// Ranks on one GPU whose NCCL is told that they are on different hosts, which it then believes: for tests.
bool told_other_hosts() {
  return std::getenv("NCCL_HOSTID") != nullptr;
}

// What ranks tell each other about themselves.
struct Place {
  std::string host, pci;
};

std::vector<Place> all_places(const World& world, const StageDevice& device) {
  const std::string mine = world.host() + '\n' + device.pci;
  std::vector<Place> places;
  for (const std::vector<std::byte>& bytes : world.from_all(std::as_bytes(std::span(mine)))) {
    const std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    const std::size_t end = text.find('\n');
    places.push_back({text.substr(0, end), text.substr(end + 1)});
  }
  return places;
}

// As far as it can be known from outside NCCL.
std::string way_between(const Place& from, const Place& to, const LinkSetUp& set_up) {
  if (from.host != to.host) return "between hosts";
  if (set_up.queue == nullptr) return "on one host";
  if (told_other_hosts()) return "on one host, over its network, since NCCL_HOSTID is set";
  const std::optional<bool> reach = can_reach(set_up.device->index, from.pci);
  if (!reach) return "on one host, between GPUs that do not see each other here";
  return *reach ? "on one host, between GPUs that reach each other (NVLink or PCIe)"
                : "on one host, through its memory, since the GPUs do not reach each other";
}

// The id of the link to the next stage, by rank.
std::vector<NcclId> all_ids(const World& world, bool sends) {
  NcclId mine = {};
  world.agree([&] {
    if (sends) mine = make_nccl_id();
  });
  std::vector<NcclId> ids;
  for (const std::vector<std::byte>& bytes : world.from_all(mine)) {
    std::memcpy(ids.emplace_back().data(), bytes.data(), sizeof(NcclId));
  }
  return ids;
}

NcclOptions nccl_options(const World& world, const LinkSetUp& set_up) {
  NcclOptions options;
  options.self = world.name_of(set_up.grid, world.rank());
  options.timeout_s = set_up.timeout_s;
  options.waits_on_device = set_up.waits_on_device;
  options.check = throw_if_interrupted;
  return options;
}

// To every other shard, one pair of all shards after the other.
std::vector<std::unique_ptr<Transport>> connect_shards_nccl(const World& world, const LinkSetUp& set_up) {
  const std::int32_t shards = set_up.grid.shards;
  const std::int32_t me = set_up.grid.shard(world.rank());
  const std::int32_t first = world.rank() - me;
  // [k][rank]: of its link to the shard k further on.
  std::vector<std::vector<NcclId>> ids(1);
  for (std::int32_t k = 1; k < shards; ++k) ids.push_back(all_ids(world, true));
  const auto link = [&](std::int32_t from, std::int32_t to, std::int32_t peer) {
    const auto further = static_cast<std::size_t>((to - from + shards) % shards);
    return NcclLink{ids[further][static_cast<std::size_t>(first + from)], world.name_of(set_up.grid, first + peer)};
  };
  std::vector<std::unique_ptr<Transport>> links(static_cast<std::size_t>(shards));
  for (std::int32_t low = 0; low < shards; ++low) {
    for (std::int32_t high = low + 1; high < shards; ++high) {
      world.agree([&] {
        if (me != low && me != high) return;
        const std::int32_t other = me == low ? high : low;
        NcclOptions options = nccl_options(world, set_up);
        options.previous = link(other, me, other);
        options.next = link(me, other, other);
        links[static_cast<std::size_t>(other)] = make_nccl_transport(options, *set_up.queue);
      });
    }
  }
  return links;
}

std::unique_ptr<Transport> connect_nccl(const World& world, const LinkSetUp& set_up) {
  const std::int32_t rank = world.rank();
  const std::int32_t stage = set_up.grid.stage(rank);
  const bool sends = stage + 1 < set_up.grid.stages;
  const std::vector<NcclId> ids = all_ids(world, sends);
  NcclOptions options = nccl_options(world, set_up);
  const auto link_with = [&](std::int32_t upstream, std::int32_t peer) {
    return NcclLink{ids[static_cast<std::size_t>(upstream)], world.name_of(set_up.grid, peer)};
  };
  const std::int32_t shards = set_up.grid.shards;
  if (stage > 0) options.previous = link_with(rank - shards, rank - shards);
  if (sends) options.next = link_with(rank, rank + shards);
  std::unique_ptr<Transport> transport;
  world.agree([&] { transport = make_nccl_transport(options, *set_up.queue); });
  return transport;
}

}  // namespace

bool choose_nccl(const World& world, TransportChoice choice, const Grid& grid, std::span<const StageDevice> devices) {
  const bool all_cuda = world.minimum(std::ranges::all_of(devices, &StageDevice::cuda) ? 1 : 0) == 1;
  const bool none_shared = world.minimum(std::ranges::any_of(devices, &StageDevice::shared) ? 0 : 1) == 1;
  const bool none_misled = none_shared || (world.minimum(told_other_hosts() ? 1 : 0) == 1);
  const bool all_have = world.minimum(nccl_version().empty() ? 0 : 1) == 1;  // builds may differ
  const bool links = grid.of_replica() > 1 && world.size() > 1;
  if (choice == TransportChoice::kMpi) return false;
  if (choice == TransportChoice::kAuto) return links && all_cuda && none_shared && all_have;
  world.agree([&] {
    if (grid.of_replica() == 1) return;
    if (nccl_version().empty()) {
      throw UsageError(
          "--transport nccl: this build has no NCCL; build it where CUDA and NCCL are installed, or use "
          "--transport mpi");
    }
    if (!links) {
      throw UsageError(
          "--transport nccl: stages of one process share its memory; start one rank per GPU (mpirun), or "
          "leave --transport out");
    }
    if (!all_cuda) {
      throw UsageError("--transport nccl: not every stage computes on a GPU; use --device cuda, or --transport mpi");
    }
    if (!none_misled) {
      throw UsageError(
          "--transport nccl: NCCL refuses ranks that share a GPU; start one rank per GPU, or use "
          "--transport mpi");
    }
  });
  return links;
}

namespace {

// Every two shards of this rank's stage, in an order that all of them keep.
void test_shards(const World& world, const Grid& grid, const Links& links, RingParts parts) {
  const std::int32_t me = grid.shard(world.rank());
  const std::int32_t first = world.rank() - me;
  for (std::int32_t low = 0; low < grid.shards; ++low) {
    for (std::int32_t high = low + 1; high < grid.shards; ++high) {
      if (me != low && me != high) continue;
      parts.stage = me == low ? 0 : 1;
      parts.stages = 2;
      parts.first_peer = grid.stage(first) * grid.shards + low;
      parts.peer_step = high - low;
      parts.transport = links.to_shards[static_cast<std::size_t>(me == low ? high : low)].get();
      parts.name = [&](std::int32_t s) { return world.name_of(grid, first + (s == 0 ? low : high)); };
      ring_test(parts);
    }
  }
}

// What is not connected yet: to the neighbours of the chain, and to the other shards.
void connect_rest(Links& links, const Grid& grid, std::int32_t place,
                  const std::function<std::unique_ptr<Transport>(std::int32_t previous, std::int32_t next)>& connect) {
  if (grid.stages > 1 && !links.transport) links.transport = connect(place - grid.shards, place + grid.shards);
  if (!links.to_shards.empty()) return;
  for (std::int32_t shard = 0; shard < grid.shards; ++shard) {
    const std::int32_t other = place - grid.shard(place) + shard;
    links.to_shards.push_back(other == place ? nullptr : connect(other, other));
  }
}

}  // namespace

Links connect_stages(const World& world, const LinkSetUp& set_up) {
  const Grid& grid = set_up.grid;
  const std::int32_t rank = world.rank();
  const std::int32_t stage = grid.stage(rank);
  const std::int32_t first = grid.first(grid.replica(rank));
  const std::vector<Place> places = all_places(world, *set_up.device);
  Links links;
  links.mailbox = world.mpi()->mailbox(first);
  if (set_up.queue != nullptr) {
    if (grid.stages > 1) links.transport = connect_nccl(world, set_up);
    if (grid.shards <= kMostNcclShards) links.to_shards = connect_shards_nccl(world, set_up);
  }
  connect_rest(links, grid, rank, [&](std::int32_t previous, std::int32_t next) {
    return make_staged_transport(world.mpi()->transport(previous, next), *set_up.backend);
  });
  RingParts parts;
  parts.timeout_s = set_up.timeout_s;
  parts.backend = set_up.backend;
  parts.mailbox = links.mailbox.get();
  parts.check = throw_if_interrupted;
  std::optional<RingFigures> figures;
  world.agree_within(set_up.timeout_s + kPatience, [&] {
    if (grid.stages > 1) {
      parts.stage = stage;
      parts.stages = grid.stages;
      parts.first_peer = grid.shard(rank);
      parts.peer_step = grid.shards;
      parts.transport = links.transport.get();
      parts.name = [&](std::int32_t s) { return world.name_of(grid, first + s * grid.shards + grid.shard(rank)); };
      figures = ring_test(parts);
    }
    test_shards(world, grid, links, parts);
  });
  if (figures) {
    const auto me = static_cast<std::size_t>(rank);
    const auto before = static_cast<std::size_t>(rank - grid.shards);
    log_verbose(fmt::format(
        "{}: rows come from stage {} over {}, {}; {:.0f} us for a few and the answer, {:.2f} GB/s",
        world.name_of(set_up.grid, world.rank()), stage - 1, set_up.queue != nullptr ? nccl_version() : "MPI",
        way_between(places[before], places[me], set_up), figures->latency_us, figures->gigabytes_per_s));
  }
  return links;
}

Links connect_threads(LoopbackHub& hub, const Grid& grid, std::int32_t place, Backend& backend) {
  Links links;
  if (grid.of_replica() == 1) return links;
  links.mailbox = hub.mailbox(place, grid.first(grid.replica(place)));
  connect_rest(links, grid, place, [&](std::int32_t previous, std::int32_t next) {
    return make_staged_transport(hub.transport(place, previous, next), backend);
  });
  return links;
}

}  // namespace stagecoach
