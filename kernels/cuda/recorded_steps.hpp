// Steps that repeat, recorded as CUDA graphs: hundreds of launches become one call.
//
// A key stands for everything that a step's launches depend on besides the contents of memory, addresses and shapes of
// the backend's own buffers included: so a buffer that moves makes no recorded step wrong, only useless. The first step
// of a key runs plainly (buffers grow, cuBLASLt's algorithms are chosen), the second is recorded and from then on
// replayed. A step that cannot be recorded runs plainly for ever, without a word: it is only slower. Recorded steps are
// bounded in number; the one not used for longest goes. Their memory is the driver's, outside of the pool, and taken
// only while enough is free.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cstdint>
#include <functional>
#include <map>

#include "kernels/cuda/handles.hpp"

namespace stagecoach::cuda {

class RecordedSteps {
 public:
  using Key = std::array<std::int64_t, 14>;

  // Queues what was recorded under `key`. False when there is nothing.
  bool replay(cudaStream_t stream, const Key& key);
  // Where it is time for that, records what `operations` queues on `stream`, none of which runs meanwhile, and queues
  // it. False when nothing was queued: then the caller does so. `operations` says whether `key` still stands for it.
  bool record(cudaStream_t stream, const Key& key, const std::function<bool()>& operations);
  // Whether `operations` is being recorded.
  bool recording() const { return recording_; }
  void forget() noexcept { steps_.clear(); }

  // Of device memory that recorded steps take, as far as the device's free memory tells.
  std::int64_t bytes() const;
  std::int64_t peak_bytes() const { return peak_bytes_; }

 private:
  struct Step {
    GraphExec recorded;  // null: seen once, or refused
    bool refused = false;
    std::int64_t bytes = 0;
    std::uint64_t last_use = 0;
  };
  Graph capture(cudaStream_t stream, const std::function<bool()>& operations);
  bool instantiate(Step& step, cudaGraph_t graph, cudaStream_t stream);
  void make_room();

  std::map<Key, Step> steps_;
  std::uint64_t uses_ = 0;
  std::int64_t peak_bytes_ = 0;
  bool recording_ = false;
};

}  // namespace stagecoach::cuda
