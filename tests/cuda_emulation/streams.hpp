// Queues of device work. Each stream runs its operations in order; an operation may have to come after places in other
// streams, and may not be ready yet, as one that waits for another process. Nothing runs by itself: callers say up to
// where. Knows no CUDA; callers hold the machine's mutex.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <utility>
#include <vector>

namespace stagecoach::cuda_emulation {

// A place in a stream: after its first `count` operations.
struct Place {
  std::uint64_t stream = 0;
  std::uint64_t count = 0;
};

class Streams {
 public:
  // The stream of a device with which its other blocking streams are ordered.
  std::uint64_t create_default(int device);
  std::uint64_t create(int device, bool blocking);
  // Work that is queued still runs, when the device is synchronised or another stream needs it.
  void destroy(std::uint64_t stream);

  // Queues `run`, to come after `places` and, between a device's default stream and its blocking streams, after what
  // the other side has queued. `ready`, if any, is asked from then on until it says true. Returns the place after it.
  Place enqueue(std::uint64_t stream, std::function<void()> run, std::vector<Place> places = {},
                std::function<bool()> ready = {});
  Place end(std::uint64_t stream) const;
  // What to do while an operation that is waited for is not ready; other threads may use the streams meanwhile.
  void when_stuck(std::function<void()> pause) { pause_ = std::move(pause); }

  bool reached(const Place& place) const;
  // As far as what is ready allows: false when that was not far enough.
  bool try_until(const Place& place);  // and what comes before it in other streams
  bool try_one(std::uint64_t stream);  // one operation, and what comes before it in other streams
  // To the end, however long that takes.
  void run_until(const Place& place);
  void run_stream(std::uint64_t stream);
  void run_device(int device);

 private:
  struct Operation {
    std::function<void()> run;
    std::vector<Place> after;
    std::function<bool()> ready;
  };
  struct Stream {
    int device = 0;
    bool blocking = true;
    bool is_default = false;
    bool destroyed = false;
    std::uint64_t queued = 0, done = 0;
    std::deque<Operation> operations = {};  // of those queued, the ones not done
  };
  std::uint64_t add(Stream stream);
  void collect();

  std::map<std::uint64_t, Stream> streams_;
  std::uint64_t next_id_ = 1;
  std::function<void()> pause_;
};

}  // namespace stagecoach::cuda_emulation
