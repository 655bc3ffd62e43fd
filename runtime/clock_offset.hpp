// How far a peer's clock is ahead of ours, from messages that went there and back (F. Cristian, "Probabilistic clock
// synchronization", 1989).
//
// The peer read its clock somewhere between our sending and our receiving, so the middle of the two is wrong by at most
// half the round trip. The shortest round trip seen is the one that says most: delays only ever lengthen it.
#pragma once

#include <cstdint>
#include <optional>

namespace stagecoach {

class ClockOffset {
 public:
  // All in nanoseconds: `sent` and `received` by our clock, `peer` by the other. One whose `received` is before its
  // `sent` is passed over.
  void add(std::int64_t sent, std::int64_t peer, std::int64_t received);

  bool known() const { return round_trip_.has_value(); }
  std::int64_t ahead_ns() const { return ahead_; }  // their clock minus ours; 0 while unknown
  // The true offset is no further from `ahead_ns` than this, while clocks run equally fast.
  std::int64_t error_ns() const { return round_trip_ ? *round_trip_ / 2 + *round_trip_ % 2 : 0; }

 private:
  std::int64_t ahead_ = 0;
  std::optional<std::int64_t> round_trip_;
};

// A peer's clock against ours over a run: compared at its start and again at its end, since clocks run apart by some
// ten millionths. In between the difference is taken to grow evenly; a growth that is within the errors of the two is
// taken for none, so that a hasty comparison does not stretch what lies between.
struct ClockLine {
  std::int64_t first_ns = 0, last_ns = 0;        // by the peer's clock, when the two were compared
  std::int64_t ahead_first = 0, ahead_last = 0;  // the peer's minus ours, then

  // No further off than this at either end.
  std::int64_t error_ns = 0;

  // Compared at `first_ns` and `last_ns` of our clock.
  static ClockLine through(const ClockOffset& first, std::int64_t first_ns, const ClockOffset& last,
                           std::int64_t last_ns);

  std::int64_t ours(std::int64_t peer_ns) const;
};

}  // namespace stagecoach
