#include "runtime/clock_offset.hpp"

#include <cmath>

namespace stagecoach {

void ClockOffset::add(std::int64_t sent, std::int64_t peer, std::int64_t received) {
  const std::int64_t round_trip = received - sent;
  if (round_trip < 0 || (round_trip_ && round_trip >= *round_trip_)) return;
  round_trip_ = round_trip;
  ahead_ = peer - (sent + round_trip / 2);
}

std::int64_t ClockLine::ours(std::int64_t peer_ns) const {
  const std::int64_t span = last_ns - first_ns;
  if (span <= 0) return peer_ns - ahead_first;
  const double share = static_cast<double>(peer_ns - first_ns) / static_cast<double>(span);
  return peer_ns - ahead_first -
         static_cast<std::int64_t>(std::llround(share * static_cast<double>(ahead_last - ahead_first)));
}

}  // namespace stagecoach
