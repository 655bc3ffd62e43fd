// Runs the blocks of a kernel one after another; the threads of a block are fibers of the calling host thread. A warp
// runs as far as it can before another one does (in shuffled order: often), so that what only a barrier keeps apart
// comes apart without it. One host thread at a time uses this (the emulated machine's mutex).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tests/cuda_emulation/emulation.hpp"
#include "tests/cuda_emulation/fibers.hpp"
#include "tests/cuda_emulation/language.hpp"
#include "tests/cuda_emulation/threads.hpp"

namespace stagecoach::cuda_emulation {

// Numbers for orders that must only vary.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 0x2545F4914F6CDD1Du) {}
  std::uint32_t below(std::uint32_t bound) {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<std::uint32_t>(((state_ >> 32) * bound) >> 32);
  }

 private:
  std::uint64_t state_;
};

struct Launch {
  dim3 grid, block;
  std::size_t shared_bytes = 0;
  std::function<void()> thread;
};
struct BlockOptions {
  Order order = Order::kForward;
  bool early_copies = false;
  bool no_barriers = false;
  bool no_copy_waits = false;
  bool cut_last_block = false;
};

class Runner {
 public:
  Runner() = default;
  ~Runner();
  Runner(const Runner&) = delete;
  Runner& operator=(const Runner&) = delete;

  // Empty, or what went wrong; the rest of the grid did not run then.
  std::string run(const Launch& launch, const BlockOptions& options, Random& random);

  // --- for the running thread of the running block
  BarrierCounts barrier(bool predicate);
  void warp_together(std::uint32_t mask, WarpFunction function, void* lane);
  int lane() const { return current_ % 32; }
  unsigned char* shared() const { return shared_; }
  void copy(void* shared, const void* global, bool valid);
  void end_copy_group() { ++copies_[static_cast<std::size_t>(current_)].groups; }
  void wait_for_copies(int groups);
  [[noreturn]] void fault(const std::string& what);

 private:
  enum class State : std::uint8_t { kNew, kRunnable, kAtBarrier, kInWarp, kDone };
  struct Copy {
    void* shared;
    const void* global;
    int group;
  };
  struct PooledFiber {
    explicit PooledFiber(Runner* owner);
    static void begin(void* self);
    Fiber fiber;
    Runner* runner;
    int thread = -1;
  };
  struct Thread {  // small: all of a block's are touched at every barrier
    PooledFiber* fiber = nullptr;
    uint3 index = {};
    State state = State::kNew;
  };
  struct Arrival {  // of a thread at a warp function
    WarpFunction function = nullptr;
    void* lane = nullptr;
    std::uint32_t mask = 0;
  };
  struct Copies {
    std::vector<Copy> under_way;  // global is null for zeros
    int groups = 0;
  };
  struct Warp {
    std::uint32_t exists = 0;
    std::uint32_t waiting = 0;           // in a warp function
    std::array<std::uint8_t, 64> ready;  // ring of lanes
    std::uint32_t first = 0, count = 0;
  };

  void begin_grid();
  void begin_block(std::uint64_t number);
  void run_block();
  void order_lanes(Warp& warp, std::uint32_t lanes);
  void release_barrier();
  void release_all_warps(std::uint32_t warps);
  int next();
  PooledFiber* fiber_for(int thread);
  void resume(int thread);
  void wait();
  void fiber_main(PooledFiber& self);
  int run_threads(PooledFiber& fiber);
  void run_thread(int thread, PooledFiber& fiber);
  void stuck();
  void note_fault(const std::string& what);
  template <typename T>
  void shuffle(T* values, std::uint32_t count);

  const Launch* launch_ = nullptr;
  BlockOptions options_;
  Random* random_ = nullptr;
  int thread_count_ = 0;
  std::vector<Thread> threads_;
  std::vector<Arrival> arrivals_;
  std::vector<Copies> copies_;
  std::vector<Warp> warps_;
  std::array<std::uint8_t, 64> warp_queue_ = {};  // ring of warps with lanes that can run, but the current one
  std::uint32_t first_warp_ = 0, queued_warps_ = 0;
  int current_warp_ = -1;
  int current_ = -1;
  int live_ = 0;
  int at_barrier_ = 0;
  int predicates_ = 0;
  std::uint64_t skipped_barriers_ = 0;
  BarrierCounts counts_;
  bool aborting_ = false;
  std::string fault_;
  unsigned char* shared_ = nullptr;
  std::vector<std::unique_ptr<PooledFiber>> fibers_;
  std::vector<PooledFiber*> idle_;
  Fiber host_;
  Fiber* running_ = &host_;
};

}  // namespace stagecoach::cuda_emulation
