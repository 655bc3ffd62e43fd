#include "runtime/clock_offset.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace stagecoach {

void ClockOffset::add(std::int64_t sent, std::int64_t peer, std::int64_t received) {
  const std::int64_t round_trip = received - sent;
  if (round_trip < 0 || (round_trip_ && round_trip >= *round_trip_)) return;
  round_trip_ = round_trip;
  ahead_ = peer - (sent + round_trip / 2);
}

ClockLine ClockLine::through(const ClockOffset& first, std::int64_t first_ns, const ClockOffset& last,
                             std::int64_t last_ns) {
  ClockLine line{first_ns + first.ahead_ns(), last_ns + last.ahead_ns(), first.ahead_ns(), last.ahead_ns(),
                 std::max(first.error_ns(), last.error_ns())};
  // What both comparisons allow.
  const std::int64_t least = std::max(first.ahead_ns() - first.error_ns(), last.ahead_ns() - last.error_ns());
  const std::int64_t most = std::min(first.ahead_ns() + first.error_ns(), last.ahead_ns() + last.error_ns());
  if (least > most) return line;
  const std::int64_t same = least + (most - least) / 2;
  line.ahead_first = line.ahead_last = same;
  line.error_ns = std::max(std::abs(same - first.ahead_ns()) + first.error_ns(),
                           std::abs(same - last.ahead_ns()) + last.error_ns());
  return line;
}

std::int64_t ClockLine::ours(std::int64_t peer_ns) const {
  const std::int64_t span = last_ns - first_ns;
  if (span <= 0) return peer_ns - ahead_first;
  const double share = static_cast<double>(peer_ns - first_ns) / static_cast<double>(span);
  return peer_ns - ahead_first -
         static_cast<std::int64_t>(std::llround(share * static_cast<double>(ahead_last - ahead_first)));
}

}  // namespace stagecoach
