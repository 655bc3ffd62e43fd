#include "launch/room.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <string>

#include "launch/machine.hpp"

namespace stagecoach {
namespace {

// Share of the free memory that stages without a budget divide; the rest is for the page cache and for others.
constexpr double kMemoryShare = 0.9;
// What the process may still take: pages of code not used so far, MPI's buffers, the heap's gaps.
constexpr std::int64_t kProcessSlackBytes = 12 << 20;
// Threads of a stage beside those that compute: loading, reading ahead, prompts.
constexpr std::int32_t kOtherThreads = 3;
constexpr std::int64_t kNoLimit = std::numeric_limits<std::int64_t>::max();

// Of one stage, or of all stages of a process that share; ranks tell each other.
struct HostClaim {
  char host[104] = {};
  std::int64_t free_bytes = 0;      // on the host
  std::int64_t resident_bytes = 0;  // that the process has already
  std::int64_t most_bytes = 0;      // that the system allows the process
  std::int64_t budget_bytes = 0;    // 0: none
};

// What the owner of each claim may take, process included.
std::vector<std::int64_t> available_of(const std::vector<HostClaim>& claims) {
  std::vector<std::int64_t> result;
  for (const HostClaim& claim : claims) {
    std::int64_t free_bytes = kNoLimit;
    std::vector<std::optional<std::int64_t>> wishes;
    std::size_t mine = 0;
    for (const HostClaim& other : claims) {
      if (std::strcmp(other.host, claim.host) != 0) continue;
      if (&other == &claim) mine = wishes.size();
      free_bytes = std::min(free_bytes, other.free_bytes);
      std::optional<std::int64_t> wish;
      if (other.budget_bytes > 0) wish = std::max<std::int64_t>(0, other.budget_bytes - other.resident_bytes);
      wishes.push_back(wish);
    }
    const std::int64_t most = claim.budget_bytes > 0 ? claim.budget_bytes : kNoLimit;
    const std::int64_t share = divide(free_bytes, kMemoryShare, wishes)[mine];
    result.push_back(std::min(
        {most, claim.most_bytes, share > kNoLimit - claim.resident_bytes ? kNoLimit : claim.resident_bytes + share}));
  }
  return result;
}

template <typename T>
std::vector<T> values_of(const std::vector<std::byte>& bytes) {
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

// A process's stages with the pots that they draw from, numbered from 0; GPUs are pots of their own, -1.
struct Household {
  std::vector<StageRoom> rooms;
  std::vector<HostClaim> claims;  // of each pot in host memory
};

Household household_of(const World& world, const RoomRequest& request) {
  const ProcessMemory now = process_memory();
  const auto stages = static_cast<std::int64_t>(request.devices.size());
  const std::int64_t process = process_bytes(stages, request.threads) + request.prompt_bytes;
  const std::optional<std::int64_t> data_room = data_limit_room_bytes();
  HostClaim claim;
  std::strncpy(claim.host, world.host().c_str(), sizeof claim.host - 1);
  claim.free_bytes = available_memory_bytes();

  Household mine;
  std::optional<std::int32_t> shared;
  for (std::size_t i = 0; i < request.devices.size(); ++i) {
    StageRoom room;
    room.threads = request.threads;
    room.budget_bytes = request.budgets[i].value_or(0);
    room.cuda = request.devices[i].cuda;
    if (room.cuda) {
      room.pool_bytes = room.available_bytes = request.devices[i].pool_bytes;
      room.pot = -1;
      mine.rooms.push_back(room);
      continue;
    }
    room.process_bytes = (process + stages - 1) / stages;
    if (room.budget_bytes > 0 || !shared) {
      room.pot = static_cast<std::int32_t>(mine.claims.size());
      if (room.budget_bytes == 0) shared = room.pot;
      claim.budget_bytes = room.budget_bytes;
      mine.claims.push_back(claim);
    } else {
      room.pot = *shared;
    }
    HostClaim& pot = mine.claims[static_cast<std::size_t>(room.pot)];
    pot.resident_bytes += now.peak_resident_bytes / stages;
    pot.most_bytes += data_room ? (now.data_bytes + *data_room) / stages : kNoLimit / stages;
    mine.rooms.push_back(room);
  }
  return mine;
}

}  // namespace

std::int64_t process_bytes(std::int64_t stages, std::int32_t threads) {
  return process_memory().bytes() + stages * (threads + kOtherThreads) * kThreadStackBytes + kProcessSlackBytes;
}

std::vector<StageRoom> find_rooms(const World& world, const RoomRequest& mine) {
  const Household household = household_of(world, mine);
  const auto all_rooms = world.from_all(std::as_bytes(std::span(household.rooms)));
  const auto all_claims = world.from_all(std::as_bytes(std::span(household.claims)));
  std::vector<StageRoom> rooms;
  std::vector<HostClaim> claims;
  for (std::size_t rank = 0; rank < all_rooms.size(); ++rank) {
    const auto first_pot = static_cast<std::int32_t>(claims.size());
    const std::vector<HostClaim> of_rank = values_of<HostClaim>(all_claims[rank]);
    claims.insert(claims.end(), of_rank.begin(), of_rank.end());
    for (StageRoom room : values_of<StageRoom>(all_rooms[rank])) {
      if (!room.cuda) room.pot += first_pot;
      rooms.push_back(room);
    }
  }
  const std::vector<std::int64_t> available = available_of(claims);
  auto next_pot = static_cast<std::int32_t>(claims.size());
  for (StageRoom& room : rooms) {
    if (room.cuda) {
      room.pot = next_pot++;
    } else {
      room.available_bytes = available[static_cast<std::size_t>(room.pot)];
    }
  }
  return rooms;
}

}  // namespace stagecoach
