// The thread pool: every task once, whatever the numbers of tasks and threads.
#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <thread>

#include "kernels/cpu/thread_pool.hpp"

using stagecoach::cpu::ThreadPool;

TEST_CASE("every task of every region runs exactly once and is finished when run returns") {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    CHECK(pool.threads() == threads);
    std::vector<int> done(300);  // plain ints: run() must order them
    for (int region = 0; region < 300; ++region) {
      const std::int64_t tasks = region % 7 == 0 ? region : region % 5;
      std::fill(done.begin(), done.end(), 0);
      std::atomic<int> strangers = 0;
      pool.run(tasks, [&](std::int64_t task, int thread) {
        if (thread < 0 || thread >= threads) ++strangers;
        ++done[static_cast<std::size_t>(task)];
      });
      REQUIRE(strangers == 0);
      for (std::int64_t i = 0; i < 300; ++i) REQUIRE(done[static_cast<std::size_t>(i)] == (i < tasks ? 1 : 0));
    }
  }
}

TEST_CASE("one thread means the caller's thread") {
  ThreadPool pool(1);
  const auto caller = std::this_thread::get_id();
  pool.run(5, [&](std::int64_t, int thread) {
    CHECK(std::this_thread::get_id() == caller);
    CHECK(thread == 0);
  });
}

TEST_CASE("workers that fell asleep take part again") {
  ThreadPool pool(3);
  for (int round = 0; round < 3; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    // Each task waits until another thread has one too: this hangs unless somebody wakes.
    std::atomic<int> present = 0;
    pool.run(2, [&](std::int64_t, int) {
      ++present;
      while (present < 2) std::this_thread::yield();
    });
    CHECK(present == 2);
  }
}

TEST_CASE("pools live side by side, and sizes are checked") {
  std::atomic<std::int64_t> sum = 0;
  const auto use = [&] {
    ThreadPool pool(2);
    for (int i = 0; i < 200; ++i) pool.run(10, [&](std::int64_t task, int) { sum += task; });
  };
  std::thread other(use);
  use();
  other.join();
  CHECK(sum == 2 * 200 * 45);
  CHECK_THROWS_AS(ThreadPool(0), std::invalid_argument);
  ThreadPool pool(2);
  CHECK_THROWS_AS(pool.run(ThreadPool::kMaxTasks + 1, [](std::int64_t, int) {}), std::invalid_argument);
}
