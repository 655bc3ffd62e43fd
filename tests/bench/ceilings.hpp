// What the machine can do at this moment: the ceilings that benchmarks take ratios to.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

namespace stagecoach::bench {

class Ceilings {
 public:
  explicit Ceilings(int threads);  // takes 1 GiB

  // Reading 1 GiB, far more than any cache, on `threads` threads (0: as many as given above).
  double read_bytes_per_s(int threads = 0);
  // Float32 fused multiply-adds between registers, two operations each, with the widest vectors of this CPU.
  double multiply_add_flops_per_s(int threads = 0);

 private:
  float* sink(int thread) { return &sinks_[static_cast<std::size_t>(thread) * 64]; }  // cache lines of their own

  int threads_;
  struct Free {
    void operator()(float* memory) const { std::free(memory); }
  };
  std::unique_ptr<float[], Free> memory_;  // huge pages where the system allows, as the backend's weights have
  std::vector<float> sinks_;
};

}  // namespace stagecoach::bench
