#include "kernels/cuda/recorded_steps.hpp"

#include <algorithm>

#include "kernels/backend.hpp"

namespace stagecoach::cuda {
namespace {

// A step of GPT-2 XL is some 450 launches, of which a driver keeps some kilobytes each. Sizes of batches (13), shapes
// of attention (a few for each) and buffers of rows in flight multiply, but what runs at one time uses few of them.
constexpr std::size_t kMostSteps = 64;
constexpr std::int64_t kLeastFreeBytes = 64 << 20;

std::int64_t free_bytes() {
  std::size_t free = 0;
  std::size_t total = 0;
  check(cudaMemGetInfo(&free, &total));
  return static_cast<std::int64_t>(free);
}

// The capture of a stream; ends with its owner, and what was not asked for is dropped.
class Capture {
 public:
  // Other threads, which load or copy, are not disturbed.
  explicit Capture(cudaStream_t stream)
      : stream_(stream), open_(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess) {}
  ~Capture() { end(); }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  bool open() const { return open_; }
  Graph end() noexcept {
    cudaGraph_t graph = nullptr;
    if (open_ && cudaStreamEndCapture(stream_, &graph) != cudaSuccess) graph = nullptr;
    open_ = false;
    return Graph(graph);
  }

 private:
  cudaStream_t stream_;
  bool open_;
};

}  // namespace

bool RecordedSteps::replay(cudaStream_t stream, const Key& key) {
  const auto found = steps_.find(key);
  if (found == steps_.end() || !found->second.recorded) return false;
  found->second.last_use = ++uses_;
  check(cudaGraphLaunch(found->second.recorded.get(), stream));
  return true;
}

bool RecordedSteps::record(cudaStream_t stream, const Key& key, const std::function<bool()>& operations) {
  const auto found = steps_.find(key);
  if (found == steps_.end()) {
    make_room();
    steps_[key].last_use = ++uses_;
    return false;
  }
  Step& step = found->second;
  step.last_use = ++uses_;
  if (step.refused || free_bytes() < kLeastFreeBytes) return false;
  const Graph graph = capture(stream, operations);
  step.refused = !graph || !instantiate(step, graph.get(), stream);
  if (step.refused) cudaGetLastError();  // that was the recording's; the plain step will tell its own
  return !step.refused && replay(stream, key);
}

// Null when it did not succeed. Failures of the device are left to the plain step, which meets them as well.
Graph RecordedSteps::capture(cudaStream_t stream, const std::function<bool()>& operations) {
  struct Flag {
    bool& raised;
    ~Flag() { raised = false; }
  } const flag{recording_ = true};
  Capture capture(stream);
  if (!capture.open()) return nullptr;
  try {
    if (!operations()) return nullptr;
  } catch (const DeviceError&) {
    return nullptr;
  }
  return capture.end();
}

bool RecordedSteps::instantiate(Step& step, cudaGraph_t graph, cudaStream_t stream) {
  const std::int64_t before = free_bytes();
  cudaGraphExec_t made = nullptr;
  if (cudaGraphInstantiate(&made, graph, 0) != cudaSuccess) return false;
  step.recorded.reset(made);
  if (cudaGraphUpload(made, stream) != cudaSuccess) {
    step.recorded.reset();
    return false;
  }
  step.bytes = std::max<std::int64_t>(before - free_bytes(), 0);
  peak_bytes_ = std::max(peak_bytes_, bytes());
  return true;
}

std::int64_t RecordedSteps::bytes() const {
  std::int64_t sum = 0;
  for (const auto& [key, step] : steps_) sum += step.bytes;
  return sum;
}

void RecordedSteps::make_room() {
  if (steps_.size() < kMostSteps) return;
  steps_.erase(std::ranges::min_element(steps_, {}, [](const auto& step) { return step.second.last_use; }));
}

}  // namespace stagecoach::cuda
