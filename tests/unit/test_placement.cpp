// Ranks on hosts: neighbours together whatever the launcher's order, stages where the run file wants them, or a refusal
// that says what would do.
#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "partition/model.hpp"
#include "partition/placement.hpp"

using namespace stagecoach;

namespace {

using Names = std::vector<std::string>;
using Order = std::vector<std::int32_t>;

// Hosts of one letter.
Names letters(const std::string& text) {
  Names names;
  for (const char c : text) names.push_back(c == '.' ? "" : std::string(1, c));
  return names;
}

// The hosts of the places, as letters.
std::string hosts_of(const PlacementWish& wish) {
  std::string text;
  for (const std::int32_t rank : place_ranks(wish)) text += wish.hosts[static_cast<std::size_t>(rank)];
  return text;
}

std::string error_of(const PlacementWish& wish) {
  try {
    place_ranks(wish);
  } catch (const PlanError& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace

TEST_CASE("ranks in turn become neighbours, and ranks in order stay as they are") {
  CHECK(place_ranks({letters("abab")}) == Order{0, 2, 1, 3});
  CHECK(place_ranks({letters("abcabc")}) == Order{0, 3, 1, 4, 2, 5});
  CHECK(place_ranks({letters("aabbb")}) == Order{0, 1, 2, 3, 4});
  CHECK(place_ranks({letters("baab")}) == Order{0, 3, 1, 2});
  CHECK(place_ranks({letters("a")}) == Order{0});
  CHECK(place_ranks({}).empty());
}

TEST_CASE("replicas are whole on a host where they can be, and then the ranks of a stage") {
  CHECK(hosts_of({letters("abbb"), {2}}) == "abbb");
  CHECK(hosts_of({letters("aaabbccc"), {2}}) == "aaccbbac");
  CHECK(place_ranks({letters("ababab"), {3}}) == Order{0, 2, 4, 1, 3, 5});
  CHECK(hosts_of({letters("aaabbb"), {2}}) == "aaabbb");
  // Two replicas of two stages of two ranks on hosts with 2, 4 and 2.
  CHECK(hosts_of({letters("abbcbbca"), {4, 2}}) == "aaccbbbb");
  CHECK(hosts_of({letters("aaabbbbb"), {4, 2}}) == "aaabbbbb");
  CHECK(hosts_of({letters("aaabbbbc"), {4, 2}}) == "aaacbbbb");
}

TEST_CASE("stages go to the hosts that a run file names, by short or full names, and the others between them") {
  CHECK(hosts_of({letters("aabb"), {4}, letters("bbaa")}) == "bbaa");
  CHECK(place_ranks({letters("abab"), {4}, letters("...b")}) == Order{0, 2, 1, 3});
  CHECK(hosts_of({letters("aabb"), {4}, letters("..b.")}) == "aabb");
  CHECK(hosts_of({letters("aabb"), {4}, letters("b...")}) == "bbaa");
  CHECK(hosts_of({letters("abcabc"), {3}, letters("..c..c")}) == "aacbbc");
  const Names full = {"n1.cluster", "n2.cluster"};
  CHECK(place_ranks({full, {}, {"n2", "N1.cluster"}}) == Order{1, 0});
  CHECK(place_ranks({{"n1", "n2"}, {}, {"n2.cluster", "n1"}}) == Order{1, 0});
}

TEST_CASE("same hosts") {
  CHECK(same_host("n1", "n1"));
  CHECK(same_host("n1", "N1.cluster.org"));
  CHECK(same_host("n1.a", "n1.A"));
  CHECK_FALSE(same_host("n1.a", "n1.b"));
  CHECK_FALSE(same_host("n1", "n10"));
  CHECK_FALSE(same_host("n1", "n2.n1"));
}

TEST_CASE("hosts without enough ranks are refused with what is wanted, what there is and what would do") {
  PlacementWish wish{letters("aaa"), {3}, {"", "node02", "node02"}, {"r.yaml:3:7", "r.yaml:4:7", "r.yaml:5:7"}};
  CHECK(error_of(wish) ==
        "r.yaml:4:7: host: the stages want 2 ranks on node02, but there are 3 ranks on a; mpirun -n 3 --host "
        "node02:2,a:1 would do");
  CHECK(error_of({letters("aab"), {3}, letters("abb")}) ==
        "host: the stages want 1 rank on a and 2 on b, but there are 2 ranks on a and 1 on b; mpirun -n 3 --host "
        "a:1,b:2 would do");
  CHECK(error_of({letters("aabcc"), {5}, letters(".bb.c")}) ==
        "host: the stages want 2 ranks on b and 1 on c, but there are 2 ranks on a, 1 on b and 2 on c; mpirun -n 5 "
        "--host b:2,c:1,a:2 would do");
  wish.one_process = true;
  CHECK(error_of(wish) ==
        "r.yaml:4:7: host: the stages want 2 ranks on node02, but all stages are in one process on a; mpirun -n 3 "
        "--host node02:2,a:1 would do");
  CHECK(error_of({{"n.a", "n.b"}, {}, {"n", ""}}) == "host: n may be n.a or n.b; write its full name");
}

TEST_CASE("any hosts: an order of the ranks, as many replicas whole as the hosts have room for, wishes granted") {
  const unsigned seed = std::random_device{}();
  CAPTURE(seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 3000; ++round) {
    const auto shards = static_cast<std::int32_t>(1 + random() % 2);
    const auto stages = static_cast<std::int32_t>(1 + random() % 5);
    const auto replicas = static_cast<std::int32_t>(1 + random() % 4);
    const std::int32_t of_replica = shards * stages;
    PlacementWish wish;
    wish.together = {of_replica, shards};
    std::map<std::string, std::int32_t> counts;
    const auto hosts = 1 + random() % 5;
    for (std::int32_t r = 0; r < of_replica * replicas; ++r) {
      wish.hosts.push_back(std::string(1, static_cast<char>('a' + random() % hosts)));
      ++counts[wish.hosts.back()];
    }
    const bool wishes = round % 2 == 1;
    if (wishes) {  // that can be granted
      wish.wanted = wish.hosts;
      std::ranges::shuffle(wish.wanted, random);
      for (std::string& name : wish.wanted) {
        if (random() % 2 == 0) name.clear();
      }
    }
    const Order order = place_ranks(wish);
    Order sorted = order;
    std::ranges::sort(sorted);
    Order all(wish.hosts.size());
    std::iota(all.begin(), all.end(), 0);
    REQUIRE(sorted == all);
    const auto host = [&](std::size_t place) { return wish.hosts[static_cast<std::size_t>(order[place])]; };
    for (std::size_t place = 0; place < wish.wanted.size(); ++place) {
      if (!wish.wanted[place].empty()) REQUIRE(host(place) == wish.wanted[place]);
    }
    if (wishes) continue;
    REQUIRE(order[0] == 0);
    std::int32_t whole = 0, possible = 0;
    for (std::int32_t replica = 0; replica < replicas; ++replica) {
      const auto first = static_cast<std::size_t>(replica * of_replica);
      bool same = true;
      for (std::size_t place = first; place < first + static_cast<std::size_t>(of_replica); ++place) {
        same = same && host(place) == host(first);
      }
      whole += same ? 1 : 0;
    }
    for (const auto& [name, count] : counts) possible += count / of_replica;
    REQUIRE(whole == possible);
    // Ranks of a host keep their order, so that they find its GPUs by their numbers.
    std::map<std::string, std::int32_t> last;
    for (std::size_t place = 0; place < order.size(); ++place) {
      const auto found = last.find(host(place));
      if (found != last.end()) REQUIRE(found->second < order[place]);
      last[host(place)] = order[place];
    }
  }
}
