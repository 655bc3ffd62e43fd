// A few threads that share out the tasks of one parallel region at a time.
//
// The calling thread takes part; with one thread none are started and a region is a plain loop. Workers wait
// awake for some microseconds after a region, because a decode step is hundreds of short regions, and then
// sleep. A region does not wait for workers that are still asleep: whoever is awake takes the next task. So
// the order in which tasks run is not fixed, and tasks must not depend on one another. Regions are started by
// one thread at a time; tasks must not throw.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace stagecoach::cpu {

class ThreadPool {
 public:
  // Most tasks of one region.
  static constexpr std::int64_t kMaxTasks = (std::int64_t{1} << 24) - 1;

  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(task, thread) for every task in 0..tasks-1, thread in 0..threads()-1, and returns when all are
  // done.
  template <class Body>
  void run(std::int64_t tasks, const Body& body) {
    if (workers_.empty() || tasks <= 1) {
      for (std::int64_t i = 0; i < tasks; ++i) body(i, 0);
      return;
    }
    run_region(tasks, &body, [](const void* context, std::int64_t task, int thread) {
      (*static_cast<const Body*>(context))(task, thread);
    });
  }

 private:
  using Call = void (*)(const void* context, std::int64_t task, int thread);

  void run_region(std::int64_t tasks, const void* context, Call call);
  void work(int thread);
  bool run_next_task(int thread);

  // Region number (16 bits), number of tasks (24), next task (24) in one word: a task is claimed by a
  // compare-exchange that fails when the region has changed meanwhile, so call_ and context_ are read only
  // while they stand still.
  std::atomic<std::uint64_t> ticket_{0};
  std::atomic<std::uint32_t> unfinished_{0};
  std::atomic<std::uint32_t> wake_{0};  // counts regions; sleeping workers wait for it to change
  std::atomic<bool> stop_{false};
  const void* context_ = nullptr;
  Call call_ = nullptr;
  std::vector<std::thread> workers_;
};

}  // namespace stagecoach::cpu
