#include "partition/placement.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <iterator>
#include <optional>
#include <span>
#include <utility>

#include "partition/model.hpp"
#include "partition/wording.hpp"

namespace stagecoach {
namespace {

struct Host {
  std::string name;
  std::vector<std::int32_t> ranks;
  std::int64_t left = 0;    // that no place has
  std::int64_t wanted = 0;  // by name
};

std::vector<Host> hosts_of(const std::vector<std::string>& names) {
  std::vector<Host> hosts;
  for (std::size_t rank = 0; rank < names.size(); ++rank) {
    auto host = std::ranges::find(hosts, names[rank], &Host::name);
    if (host == hosts.end()) {
      hosts.push_back({names[rank], {}});
      host = std::prev(hosts.end());
    }
    host->ranks.push_back(static_cast<std::int32_t>(rank));
    ++host->left;
  }
  return hosts;
}

std::string counted(const std::vector<std::pair<std::string, std::int64_t>>& counts) {
  std::string text;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    const auto& [name, count] = counts[i];
    if (i > 0) text += i + 1 == counts.size() ? " and " : ", ";
    text += fmt::format("{}{} on {}", count, i > 0 ? "" : count == 1 ? " rank" : " ranks", printable(name));
  }
  return text;
}

class Placement {
 public:
  explicit Placement(const PlacementWish& wish)
      : wish_(wish), hosts_(hosts_of(wish.hosts)), places_(wish.hosts.size(), kFree) {
    for (const std::string& name : wish.hosts) {
      launched_.push_back(static_cast<std::int32_t>(std::ranges::find(hosts_, name, &Host::name) - hosts_.begin()));
    }
  }

  std::vector<std::int32_t> run() {
    grant_wishes();
    if (places_.empty()) return {};
    if (places_[0] == kFree && hosts_[0].left > 0) give(0, 0);  // who reads the prompts
    fill(0, places_.size(), 0);
    if (as_launched_is_as_good()) std::ranges::copy(launched_, places_.begin());
    std::vector<std::size_t> next(hosts_.size(), 0);
    std::vector<std::int32_t> ranks;
    for (const std::int32_t host : places_) {
      const auto h = static_cast<std::size_t>(host);
      ranks.push_back(hosts_[h].ranks[next[h]++]);
    }
    return ranks;
  }

 private:
  static constexpr std::int32_t kFree = -1;

  void give(std::size_t place, std::int32_t host) {
    places_[place] = host;
    --hosts_[static_cast<std::size_t>(host)].left;
  }

  // ---- hosts by name ----

  std::optional<std::int32_t> find(const std::string& name, std::size_t place) const {
    std::optional<std::int32_t> found;
    for (std::size_t h = 0; h < hosts_.size(); ++h) {
      if (!same_host(name, hosts_[h].name)) continue;
      if (found) {
        throw PlanError(fmt::format("{}host: {} may be {} or {}; write its full name", at(place), shown(name),
                                    hosts_[static_cast<std::size_t>(*found)].name, hosts_[h].name));
      }
      found = static_cast<std::int32_t>(h);
    }
    return found;
  }

  std::string at(std::size_t place) const { return place < wish_.where.size() ? wish_.where[place] + ": " : ""; }

  void grant_wishes() {
    std::optional<std::size_t> in_vain;
    for (std::size_t place = 0; place < wish_.wanted.size(); ++place) {
      if (wish_.wanted[place].empty()) continue;
      const std::optional<std::int32_t> host = find(wish_.wanted[place], place);
      if (host) ++hosts_[static_cast<std::size_t>(*host)].wanted;
      if (host && hosts_[static_cast<std::size_t>(*host)].left > 0) {
        give(place, *host);
      } else if (!in_vain) {
        in_vain = place;
      }
    }
    if (in_vain) refuse(*in_vain);
  }

  [[noreturn]] void refuse(std::size_t place) const {
    std::vector<std::pair<std::string, std::int64_t>> wanted;
    std::int64_t free = 0;
    for (const std::string& name : wish_.wanted) {
      if (name.empty()) ++free;
      if (name.empty()) continue;
      const auto same = std::ranges::find_if(wanted, [&](const auto& other) { return same_host(other.first, name); });
      if (same == wanted.end()) {
        wanted.emplace_back(name, 1);
      } else {
        ++same->second;
      }
    }
    // The other places may be anywhere: where there are ranks too many.
    std::vector<std::pair<std::string, std::int64_t>> good = wanted;
    for (const Host& host : hosts_) {
      const auto more = std::min(free, static_cast<std::int64_t>(host.ranks.size()) - host.wanted);
      if (more <= 0) continue;
      free -= more;
      const auto same =
          std::ranges::find_if(good, [&](const auto& other) { return same_host(other.first, host.name); });
      if (same == good.end()) {
        good.emplace_back(host.name, more);
      } else {
        same->second += more;
      }
    }
    std::string list;
    for (const auto& [name, count] : good) list += fmt::format("{}{}:{}", list.empty() ? "" : ",", name, count);
    const std::string there = wish_.one_process
                                  ? fmt::format("all stages are in one process on {}", printable(hosts_.at(0).name))
                                  : fmt::format("there are {}", ranks_by_host(wish_.hosts));
    throw PlanError(fmt::format("{}host: the stages want {}, but {}; mpirun -n {} --host {} would do", at(place),
                                counted(wanted), there, places_.size(), shown(list)));
  }

  // ---- the others ----

  // All free places of the group go to one host, if one has room for them; the host of what is there already.
  bool fill_from_one(std::size_t first, std::size_t size) {
    const auto begin = places_.begin() + static_cast<std::ptrdiff_t>(first);
    const std::span<std::int32_t> group(begin, size);
    const auto free = std::ranges::count(group, kFree);
    if (free == 0) return true;
    const auto taken = std::ranges::find_if(group, [](std::int32_t host) { return host != kFree; });
    const std::int32_t host = taken != group.end() ? *taken : best_host(first, size, free);
    if (std::ranges::any_of(group, [&](std::int32_t other) { return other != kFree && other != host; })) return false;
    if (hosts_[static_cast<std::size_t>(host)].left < free) return false;
    for (std::size_t place = first; place < first + size; ++place) {
      if (places_[place] == kFree) give(place, host);
    }
    return true;
  }

  // That of the neighbours in front or behind, or the one with most room.
  std::int32_t best_host(std::size_t first, std::size_t size, std::int64_t free) const {
    const auto has_room = [&](std::int32_t h) {
      return h != kFree && hosts_[static_cast<std::size_t>(h)].left >= free;
    };
    if (first > 0 && has_room(places_[first - 1])) return places_[first - 1];
    if (first + size < places_.size() && has_room(places_[first + size])) return places_[first + size];
    return static_cast<std::int32_t>(std::ranges::max_element(hosts_, {}, &Host::left) - hosts_.begin());
  }

  // What does not fit on one host is filled last, so that it takes nothing from groups that do.
  void fill(std::size_t first, std::size_t size, std::size_t level) {
    if (fill_from_one(first, size)) return;
    const std::size_t part = level < wish_.together.size() ? static_cast<std::size_t>(wish_.together[level]) : 1;
    std::vector<std::size_t> divided;
    for (std::size_t place = first; place < first + size; place += part) {
      if (!fill_from_one(place, part)) divided.push_back(place);
    }
    for (const std::size_t place : divided) fill(place, part, level + 1);
  }

  // Groups that are not on one host, and neighbours within the largest ones that are on two.
  std::int64_t divisions(const std::vector<std::int32_t>& places) const {
    std::int64_t count = 0;
    const auto differ = [&](std::size_t a, std::size_t b) { return places[a] != places[b] ? 1 : 0; };
    for (const std::int32_t group : wish_.together) {
      const auto size = static_cast<std::size_t>(group);
      for (std::size_t first = 0; first < places.size(); first += size) {
        bool whole = true;
        for (std::size_t place = first; place < first + size; ++place) whole = whole && differ(first, place) == 0;
        count += whole ? 0 : 1;
      }
    }
    const std::size_t largest = wish_.together.empty() ? places.size() : static_cast<std::size_t>(wish_.together[0]);
    for (std::size_t place = 1; place < places.size(); ++place) {
      if (place % largest != 0) count += differ(place - 1, place);
    }
    return count;
  }
  bool as_launched_is_as_good() const {
    for (std::size_t place = 0; place < wish_.wanted.size(); ++place) {
      if (!wish_.wanted[place].empty() && launched_[place] != places_[place]) return false;
    }
    return divisions(launched_) <= divisions(places_);
  }

  const PlacementWish& wish_;
  std::vector<Host> hosts_;             // in the order of their first ranks
  std::vector<std::int32_t> places_;    // host of each
  std::vector<std::int32_t> launched_;  // the same with ranks as they are
};

std::string_view label_of(std::string_view name) {
  return name.substr(0, name.find('.'));
}

}  // namespace

std::vector<std::int32_t> place_ranks(const PlacementWish& wish) {
  return Placement(wish).run();
}

bool same_host(std::string_view a, std::string_view b) {
  const auto equal = [](std::string_view x, std::string_view y) {
    return std::ranges::equal(x, y,
                              [](unsigned char c, unsigned char d) { return std::tolower(c) == std::tolower(d); });
  };
  const bool both_full = a.find('.') != std::string_view::npos && b.find('.') != std::string_view::npos;
  return both_full ? equal(a, b) : equal(label_of(a), label_of(b));
}

std::string ranks_by_host(const std::vector<std::string>& hosts) {
  std::vector<std::pair<std::string, std::int64_t>> counts;
  for (const Host& host : hosts_of(hosts)) counts.emplace_back(host.name, static_cast<std::int64_t>(host.ranks.size()));
  return counted(counts);
}

}  // namespace stagecoach
