#include "kernels/cpu/thread_pool.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace stagecoach::cpu {
namespace {

constexpr std::uint64_t kTaskBits = 24;
constexpr std::uint64_t kTaskMask = (std::uint64_t{1} << kTaskBits) - 1;

// About 30 us awake, giving the core to anyone who wants it now and then: with more ranks than cores, a
// worker that spins would stand in the way of the rank that has something to do.
constexpr int kSpins = 1024;
constexpr int kSpinsPerYield = 32;

void pause_cpu() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until `value` is no longer `old`: first awake, then asleep.
void wait_for_change(const std::atomic<std::uint32_t>& value, std::uint32_t old) {
  for (int i = 1; i <= kSpins; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    pause_cpu();
    if (i % kSpinsPerYield == 0) std::this_thread::yield();
  }
  value.wait(old, std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  if (threads < 1) throw std::invalid_argument("thread pool: " + std::to_string(threads) + " threads");
  workers_.reserve(static_cast<std::size_t>(threads) - 1);
  try {
    for (int t = 1; t < threads; ++t) workers_.emplace_back([this, t] { work(t); });
  } catch (...) {  // no more threads: end those that run before the exception leaves
    stop_.store(true);
    wake_.fetch_add(1);
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
    throw;
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  wake_.fetch_add(1);
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run_region(std::int64_t tasks, const void* context, Call call) {
  if (tasks > kMaxTasks) throw std::invalid_argument("thread pool: " + std::to_string(tasks) + " tasks");
  const auto count = static_cast<std::uint64_t>(tasks);
  context_ = context;
  call_ = call;
  unfinished_.store(static_cast<std::uint32_t>(count), std::memory_order_relaxed);
  const std::uint64_t region = (ticket_.load(std::memory_order_relaxed) >> (2 * kTaskBits)) + 1;
  ticket_.store(region << (2 * kTaskBits) | count << kTaskBits, std::memory_order_release);
  wake_.fetch_add(1, std::memory_order_seq_cst);
  wake_.notify_all();
  while (run_next_task(0)) {
  }
  for (std::uint32_t left = unfinished_.load(std::memory_order_acquire); left != 0;
       left = unfinished_.load(std::memory_order_acquire)) {
    wait_for_change(unfinished_, left);
  }
}

bool ThreadPool::run_next_task(int thread) {
  std::uint64_t ticket = ticket_.load(std::memory_order_acquire);
  do {
    if ((ticket & kTaskMask) >= ((ticket >> kTaskBits) & kTaskMask)) return false;
  } while (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acquire, std::memory_order_acquire));
  call_(context_, static_cast<std::int64_t>(ticket & kTaskMask), thread);
  if (unfinished_.fetch_sub(1, std::memory_order_acq_rel) == 1) unfinished_.notify_all();
  return true;
}

void ThreadPool::work(int thread) {
  std::uint32_t seen = 0;
  while (!stop_.load(std::memory_order_acquire)) {
    const std::uint32_t now = wake_.load(std::memory_order_acquire);
    while (run_next_task(thread)) {
    }
    seen = now;
    wait_for_change(wake_, seen);
  }
}

}  // namespace stagecoach::cpu
