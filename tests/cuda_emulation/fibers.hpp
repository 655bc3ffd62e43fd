// Fibers: stacks between which one host thread switches. Switches are announced to the address sanitizer. For the
// thread sanitizer all fibers are the host thread that runs them: announced, each would be a thread of its own, and a
// switch would cost 12 us. It counts calls and returns, so what a fiber enters on one host thread and leaves on another
// (this file and block.cpp) is compiled without it; frames in its reports from kernels can be another fiber's.
#pragma once

#include <cstddef>

namespace stagecoach::cuda_emulation {

class Fiber {
 public:
  // The stack that the caller runs on; to be switched away from by the same host thread only.
  Fiber() = default;
  // A stack of its own on which `entry(argument)` begins at the first switch to it. `entry` must not return or let an
  // exception out. Fibers may resume on a host thread other than the one they were left on.
  Fiber(void (*entry)(void*), void* argument);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Leaves the running fiber `from` for `to`; returns when something switches back.
  friend void switch_fiber(Fiber& from, Fiber& to);
  void prefetch() const {
    for (int line = 0; line < 4; ++line) __builtin_prefetch(static_cast<const std::byte*>(context_) + 64 * line);
  }
  // The first thing that `entry` does.
  static void entered();

 private:
  void* context_ = nullptr;      // the saved stack pointer, or a ucontext_t
  std::byte* memory_ = nullptr;  // a page that may not be touched, then the stack
  const void* bottom_ = nullptr;
  std::size_t bytes_ = 0;
  void* fake_stack_ = nullptr;
};

}  // namespace stagecoach::cuda_emulation
