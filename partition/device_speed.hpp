// How fast a device computes and a link carries, as curves that one measurement on a small piece of a model gives for
// all of it. Numbers only: knows no devices, no files.
//
// Products are counted in weights (elements of matrices): a microbatch of r rows takes product(r) seconds for each
// weight that it meets. That holds the memory-bound, the compute-bound and the awkward regime between them, whatever
// the dtype. Attention is counted in channels met: a row that sees k keys meets k * n_embd of them in each block.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace stagecoach {

// Piecewise linear through its points, in ascending order of x; before the first as the first, beyond the last along
// the line through the last two.
class Curve {
 public:
  struct Point {
    double x = 0.0;
    double y = 0.0;
    bool operator==(const Point&) const = default;
  };

  Curve() = default;
  // Throws std::invalid_argument unless x ascends and all numbers are finite and not negative.
  explicit Curve(std::vector<Point> points);

  double at(double x) const;
  bool empty() const { return points_.empty(); }
  const std::vector<Point>& points() const { return points_; }

 private:
  std::vector<Point> points_;
};

// Of one rank.
struct DeviceSpeed {
  std::string name;
  Curve product;              // by rows: seconds per weight of a block, all rows together
  Curve head;                 // the same of the LM head, by rows whose logits are wanted, up to kHeadRows at once
  Curve attention;            // by rows that one sequence has in the microbatch: seconds per row, key and channel
  double row_s = 0.0;         // per row and block besides: norms, activations
  double microbatch_s = 0.0;  // per microbatch: headers, tables, starting and ending
};

// From one rank to the next: a message of b bytes arrives latency_s + b * byte_s later.
struct LinkSpeed {
  double latency_s = 0.0;
  double byte_s = 0.0;
};

// A device that is known by its data sheet: products take the longer of reading their weights and multiplying.
struct DeviceRates {
  double bytes_per_s = 0.0;
  double flops_per_s = 0.0;
  double weight_bytes = 4.0;  // of one element
  double kv_bytes = 4.0;
};
DeviceSpeed speed_from_rates(const DeviceRates& rates);

}  // namespace stagecoach
