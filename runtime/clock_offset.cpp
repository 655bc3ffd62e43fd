#include "runtime/clock_offset.hpp"

namespace stagecoach {

void ClockOffset::add(std::int64_t sent, std::int64_t peer, std::int64_t received) {
  const std::int64_t round_trip = received - sent;
  if (round_trip < 0 || (round_trip_ && round_trip >= *round_trip_)) return;
  round_trip_ = round_trip;
  ahead_ = peer - (sent + round_trip / 2);
}

}  // namespace stagecoach
