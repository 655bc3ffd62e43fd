// Percentiles of many durations in bounded memory.
//
// Counts in log-spaced buckets, 64 for each doubling, from 2^-30 s (1 ns) to 2^24 s (half a year): 27 KiB however many
// values there are. A percentile is the middle of its bucket, at most 1/128 (0.8 %) away from the recorded value that
// it stands for; count, smallest and largest are exact. Values out of range, zero among them, count in the first or
// last bucket.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/wire.hpp"

namespace stagecoach {

class Histogram {
 public:
  static constexpr double kRelativeError = 1.0 / 128;

  Histogram();
  // Not negative and not NaN; what is, counts as zero.
  void add(double seconds, std::int64_t times = 1);
  void merge(const Histogram& other);
  // For merging elsewhere. `read` throws WireError.
  void put(wire::Writer& out) const;
  static Histogram read(wire::Reader& in);

  std::int64_t count() const { return count_; }
  double max() const { return max_; }  // 0 when empty
  // The smallest recorded value that at least this share of all values do not exceed, `share` in (0, 1]; 0 when empty.
  double quantile(double share) const;

 private:
  std::vector<std::int64_t> buckets_;
  std::int64_t count_ = 0;
  double min_ = 0.0;
  double max_ = 0.0;
};

}  // namespace stagecoach
