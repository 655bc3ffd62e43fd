// Which rank takes which place of the grid, so that neighbours share a host and stages are where a run file wants them.
//
// Launchers number ranks host by host, or in turn, or as a host file says; what matters is which are on one host. Pure:
// from the hosts of all ranks to an order of them, the same on every rank.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace stagecoach {

struct PlacementWish {
  std::vector<std::string> hosts;  // of the ranks, as launched: as many as there are places
  // Sizes of groups of consecutive places that are to share a host, each a multiple of the next: of a replica, then of
  // a stage's ranks.
  std::vector<std::int32_t> together = {};
  std::vector<std::string> wanted = {};  // host of each place, empty: any; none at all: any for all
  std::vector<std::string> where = {};   // of each wish: "run.yaml:4:7"
  bool one_process = false;              // the places are threads of it
};

// The rank of each place. Place 0 is rank 0's, unless a wish says otherwise. Throws PlanError when a host has fewer
// ranks than are wanted there: what is wanted, what there is and what would do.
std::vector<std::int32_t> place_ranks(const PlacementWish& wish);

// Full names are one host when they are equal, a name without domain and another when the first labels are.
bool same_host(std::string_view a, std::string_view b);

// "2 ranks on a and 1 on b".
std::string ranks_by_host(const std::vector<std::string>& hosts);

}  // namespace stagecoach
