#include "tests/cuda_emulation/block.hpp"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <utility>

#include <fmt/format.h>

constinit thread_local uint3 threadIdx = {};
constinit thread_local uint3 blockIdx = {};
constinit thread_local dim3 blockDim;
constinit thread_local dim3 gridDim;

namespace stagecoach::cuda_emulation {
namespace {

struct Abandoned {};  // unwinds the threads of a block that cannot go on

constexpr std::size_t kSharedAlignment = 128;
constexpr std::uint64_t kMostSkippedBarriers = 20'000'000;  // of a block; those of ours are far from it
constexpr unsigned char kCanary = 0xC5;
#if defined(__SANITIZE_ADDRESS__)
constexpr std::size_t kCanaryBytes = 0;
#else
constexpr std::size_t kCanaryBytes = 128;
#endif

// Exactly the bytes that the launch asked for, between canaries unless the address sanitizer watches.
class SharedMemory {
 public:
  explicit SharedMemory(std::size_t bytes) : bytes_(bytes) {
    void* memory = nullptr;
    if (posix_memalign(&memory, kSharedAlignment, bytes + 2 * kCanaryBytes) != 0) throw std::bad_alloc();
    memory_ = static_cast<unsigned char*>(memory);
  }
  ~SharedMemory() { std::free(memory_); }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  unsigned char* data() const { return memory_ + kCanaryBytes; }
  void fill() {
    std::memset(memory_, kCanary, kCanaryBytes);
    std::memset(data(), 0xFF, bytes_);  // NaN in every float type
    std::memset(data() + bytes_, kCanary, kCanaryBytes);
  }
  bool overrun() const {
    const auto damaged = [](unsigned char byte) { return byte != kCanary; };
    return std::any_of(memory_, memory_ + kCanaryBytes, damaged) ||
           std::any_of(data() + bytes_, data() + bytes_ + kCanaryBytes, damaged);
  }

 private:
  std::size_t bytes_;
  unsigned char* memory_ = nullptr;
};

}  // namespace

Runner::~Runner() = default;

template <typename T>
void Runner::shuffle(T* values, std::uint32_t count) {
  if (options_.order == Order::kBackward) {
    std::reverse(values, values + count);
  } else if (options_.order == Order::kShuffled) {
    for (std::uint32_t i = count; i > 1; --i) std::swap(values[i - 1], values[random_->below(i)]);
  }
}

std::string Runner::run(const Launch& launch, const BlockOptions& options, Random& random) {
  launch_ = &launch;
  options_ = options;
  random_ = &random;
  fault_.clear();
  begin_grid();
  std::vector<std::uint32_t> blocks(static_cast<std::size_t>(launch.grid.x) * launch.grid.y * launch.grid.z);
  for (std::size_t i = 0; i < blocks.size(); ++i) blocks[i] = static_cast<std::uint32_t>(i);
  if (options.cut_last_block) blocks.pop_back();
  shuffle(blocks.data(), static_cast<std::uint32_t>(blocks.size()));
  SharedMemory shared(launch.shared_bytes);
  shared_ = shared.data();
  for (const std::uint32_t block : blocks) {
    shared.fill();
    begin_block(block);
    run_block();
    if (fault_.empty() && shared.overrun()) note_fault("wrote beyond its dynamic shared memory");
    if (!fault_.empty()) break;
  }
  launch_ = nullptr;
  return std::exchange(fault_, {});
}

void Runner::begin_grid() {
  const dim3& block = launch_->block;
  gridDim = launch_->grid;
  blockDim = block;
  thread_count_ = static_cast<int>(block.x * block.y * block.z);
  threads_.resize(static_cast<std::size_t>(thread_count_));
  arrivals_.resize(threads_.size());
  copies_.resize(threads_.size());
  std::size_t t = 0;
  for (unsigned z = 0; z < block.z; ++z) {
    for (unsigned y = 0; y < block.y; ++y) {
      for (unsigned x = 0; x < block.x; ++x) threads_[t++].index = {x, y, z};
    }
  }
  warps_.resize((static_cast<std::size_t>(thread_count_) + 31) / 32);
}

void Runner::begin_block(std::uint64_t number) {
  const dim3& grid = launch_->grid;
  blockIdx = {static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x % grid.y),
              static_cast<unsigned>(number / grid.x / grid.y)};
  for (Thread& thread : threads_) {
    thread.state = State::kNew;
    thread.fiber = nullptr;
  }
  for (Copies& copies : copies_) {
    copies.under_way.clear();
    copies.groups = 0;
  }
  live_ = thread_count_;
  at_barrier_ = predicates_ = 0;
  skipped_barriers_ = 0;
  aborting_ = false;
  current_ = -1;
  for (std::size_t w = 0; w < warps_.size(); ++w) {
    const int lanes = std::min(32, thread_count_ - static_cast<int>(w) * 32);
    warps_[w].exists = lanes == 32 ? 0xFFFFFFFFu : (1u << lanes) - 1;
    warps_[w].waiting = warps_[w].first = warps_[w].count = 0;
    order_lanes(warps_[w], warps_[w].exists);
  }
  release_all_warps(static_cast<std::uint32_t>(warps_.size()));
}

// Appends lanes to those of the warp that can run.
void Runner::order_lanes(Warp& warp, std::uint32_t lanes) {
  std::array<std::uint8_t, 32> list;
  std::uint32_t count = 0;
  for (std::uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    list[count++] = static_cast<std::uint8_t>(std::countr_zero(rest));
  }
  shuffle(list.data(), count);
  for (std::uint32_t i = 0; i < count; ++i) warp.ready[(warp.first + warp.count++) % 64] = list[i];
}

// All warps that have lanes to run, in a fresh order.
void Runner::release_all_warps(std::uint32_t warps) {
  std::array<std::uint8_t, 32> list;
  std::uint32_t count = 0;
  for (std::uint32_t w = 0; w < warps; ++w) {
    if (warps_[w].count > 0) list[count++] = static_cast<std::uint8_t>(w);
  }
  shuffle(list.data(), count);
  std::copy_n(list.begin(), count, warp_queue_.begin());
  first_warp_ = 0;
  queued_warps_ = count;
  current_warp_ = -1;
}

void Runner::release_barrier() {
  counts_ = {at_barrier_, predicates_};
  at_barrier_ = predicates_ = 0;
  for (std::size_t w = 0; w < warps_.size(); ++w) {
    std::uint32_t lanes = 0;
    for (std::uint32_t rest = warps_[w].exists; rest != 0; rest &= rest - 1) {
      const int lane = std::countr_zero(rest);
      Thread& thread = threads_[w * 32 + static_cast<std::size_t>(lane)];
      if (thread.state != State::kAtBarrier) continue;
      thread.state = State::kRunnable;
      lanes |= 1u << lane;
    }
    order_lanes(warps_[w], lanes);
  }
  release_all_warps(static_cast<std::uint32_t>(warps_.size()));
}

// The thread to run now, or -1.
inline int Runner::next() {
  if (aborting_) [[unlikely]] {  // those with frames to unwind
    for (int t = 0; t < thread_count_; ++t) {
      const Thread& thread = threads_[static_cast<std::size_t>(t)];
      if (thread.fiber != nullptr && thread.state != State::kDone) return t;
    }
    return -1;
  }
  for (;;) {
    if (current_warp_ >= 0) {
      Warp& warp = warps_[static_cast<std::size_t>(current_warp_)];
      if (warp.count > 0) {
        --warp.count;
        const int thread = current_warp_ * 32 + warp.ready[warp.first++ % 64];
        if (warp.count > 0) {  // a block's stacks do not fit into the first-level cache
          const int after = current_warp_ * 32 + warp.ready[warp.first % 64];
          const PooledFiber* const fiber = threads_[static_cast<std::size_t>(after)].fiber;
          if (fiber != nullptr) fiber->fiber.prefetch();
        }
        return thread;
      }
    }
    if (queued_warps_ == 0) return -1;
    --queued_warps_;
    current_warp_ = warp_queue_[first_warp_++ % 64];
  }
}

Runner::PooledFiber::PooledFiber(Runner* owner) : fiber(&PooledFiber::begin, this), runner(owner) {}

void Runner::PooledFiber::begin(void* self) {
  Fiber::entered();
  auto& pooled = *static_cast<PooledFiber*>(self);
  pooled.runner->fiber_main(pooled);
}

Runner::PooledFiber* Runner::fiber_for(int thread) {
  if (idle_.empty()) idle_.push_back(fibers_.emplace_back(std::make_unique<PooledFiber>(this)).get());
  PooledFiber* const fiber = idle_.back();
  idle_.pop_back();
  fiber->thread = thread;
  return fiber;
}

inline void Runner::resume(int thread) {
  PooledFiber* fiber = threads_[static_cast<std::size_t>(thread)].fiber;
  if (fiber == nullptr) fiber = fiber_for(thread);
  Fiber& from = *running_;
  running_ = &fiber->fiber;
  switch_fiber(from, *running_);
}

void Runner::run_block() {
  const int first = next();
  if (first >= 0) resume(first);
  assert(live_ == 0 || aborting_);
}

// The running thread cannot go on: lets others run until it can.
inline void Runner::wait() {
  const int self = current_;
  int thread = next();
  if (thread < 0) {
    stuck();
    throw Abandoned{};
  }
  if (thread != self) resume(thread);
  current_ = self;
  threadIdx = threads_[static_cast<std::size_t>(self)].index;
  if (aborting_) throw Abandoned{};
}

// A pooled fiber may come back on another host thread, so this function itself must not touch anything thread_local:
// the compiler may keep such an address over a switch.
void Runner::fiber_main(PooledFiber& self) {
  for (;;) {
    const int thread = run_threads(self);
    idle_.push_back(&self);
    if (thread >= 0) {
      resume(thread);
    } else {
      running_ = &host_;
      switch_fiber(self.fiber, host_);
    }
  }
}

// Runs one thread after another until the one to run next has a fiber already, or (-1) none is left.
__attribute__((noinline)) int Runner::run_threads(PooledFiber& fiber) {
  int thread = fiber.thread;
  do {
    run_thread(thread, fiber);
    thread = next();
    if (thread < 0 && live_ > 0 && !aborting_) {
      stuck();
      thread = next();
    }
  } while (thread >= 0 && threads_[static_cast<std::size_t>(thread)].fiber == nullptr);
  return thread;
}

void Runner::run_thread(int index, PooledFiber& fiber) {
  Thread& thread = threads_[static_cast<std::size_t>(index)];
  thread.fiber = &fiber;
  thread.state = State::kRunnable;
  current_ = index;
  threadIdx = thread.index;
  try {
    launch_->thread();
  } catch (const Abandoned&) {
  } catch (const std::exception& error) {
    note_fault(fmt::format("threw an exception: {}", error.what()));
  }
  thread.state = State::kDone;
  --live_;
  if (!aborting_ && at_barrier_ > 0 && at_barrier_ == live_) release_barrier();
}

BarrierCounts Runner::barrier(bool predicate) {
  if (options_.no_barriers) {  // may keep a loop from ending
    if (++skipped_barriers_ > kMostSkippedBarriers) fault("does not end without its barriers");
    return {1, predicate};
  }
  threads_[static_cast<std::size_t>(current_)].state = State::kAtBarrier;
  predicates_ += predicate;
  if (++at_barrier_ == live_) release_barrier();
  wait();
  return counts_;
}

void Runner::warp_together(std::uint32_t mask, WarpFunction function, void* lane) {
  const auto warp_number = static_cast<std::size_t>(current_) / 32;
  Warp& warp = warps_[warp_number];
  const std::uint32_t own = 1u << (current_ % 32);
  if ((mask & own) == 0) fault(fmt::format("called a warp function with mask {:#010x}, which leaves it out", mask));
  threads_[static_cast<std::size_t>(current_)].state = State::kInWarp;
  arrivals_[static_cast<std::size_t>(current_)] = {function, lane, mask};
  warp.waiting |= own;
  const std::uint32_t needed = mask & warp.exists;
  if ((warp.waiting & needed) == needed) {
    Lanes lanes = {};
    for (std::uint32_t rest = needed; rest != 0; rest &= rest - 1) {
      const auto i = static_cast<std::size_t>(std::countr_zero(rest));
      const Arrival& other = arrivals_[warp_number * 32 + i];
      if (other.mask != mask) {
        fault(fmt::format("lanes {} and {} met in a warp function with masks {:#010x} and {:#010x}", lane_index(), i,
                          mask, other.mask));
      }
      if (other.function != function) {
        fault(fmt::format("lanes {} and {} met in different warp functions", lane_index(), i));
      }
      lanes[i] = other.lane;
    }
    if (function != nullptr) function(lanes);
    warp.waiting &= ~needed;
    for (std::uint32_t rest = needed; rest != 0; rest &= rest - 1) {
      threads_[warp_number * 32 + static_cast<std::size_t>(std::countr_zero(rest))].state = State::kRunnable;
    }
    order_lanes(warp, needed);
    if (options_.order == Order::kShuffled && queued_warps_ > 0 && random_->below(4) == 0) {  // another warp's turn
      warp_queue_[(first_warp_ + queued_warps_++) % 64] = static_cast<std::uint8_t>(current_warp_);
      current_warp_ = -1;
    }
  }
  wait();
}

void Runner::copy(void* shared, const void* global, bool valid) {
  const auto misaligned = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 != 0; };
  if (misaligned(shared) || misaligned(global)) {
    fault(fmt::format("copy_async_16 from {} to {}: not aligned to 16 bytes", global, shared));
  }
  if (options_.early_copies) {
    if (valid) std::memcpy(shared, global, 16);
    if (!valid) std::memset(shared, 0, 16);
    return;
  }
  Copies& own = copies_[static_cast<std::size_t>(current_)];
  own.under_way.push_back({shared, valid ? global : nullptr, own.groups});
}

void Runner::wait_for_copies(int groups) {
  if (options_.no_copy_waits) return;
  auto& [under_way, groups_ended] = copies_[static_cast<std::size_t>(current_)];
  std::size_t done = 0;
  for (; done < under_way.size() && under_way[done].group < groups_ended - groups; ++done) {
    const Copy& copy = under_way[done];
    if (copy.global != nullptr) std::memcpy(copy.shared, copy.global, 16);
    if (copy.global == nullptr) std::memset(copy.shared, 0, 16);
  }
  under_way.erase(under_way.begin(), under_way.begin() + static_cast<std::ptrdiff_t>(done));
}

void Runner::stuck() {
  int in_barrier = 0, in_warp = 0, done = 0;
  std::string example;
  for (int t = 0; t < thread_count_; ++t) {
    const Thread& thread = threads_[static_cast<std::size_t>(t)];
    in_barrier += thread.state == State::kAtBarrier;
    done += thread.state == State::kDone;
    if (thread.state != State::kInWarp) continue;
    if (in_warp++ == 0)
      example = fmt::format(" (thread {} with mask {:#010x})", t, arrivals_[static_cast<std::size_t>(t)].mask);
  }
  note_fault(fmt::format("cannot go on: {} threads wait at __syncthreads, {} in warp functions{}, {} have returned",
                         in_barrier, in_warp, example, done));
}

void Runner::note_fault(const std::string& what) {
  aborting_ = true;
  if (!fault_.empty()) return;
  fault_ = fmt::format("block ({}, {}, {}), thread ({}, {}, {}): {}", blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x,
                       threadIdx.y, threadIdx.z, what);
}

void Runner::fault(const std::string& what) {
  note_fault(what);
  throw Abandoned{};
}

}  // namespace stagecoach::cuda_emulation
