#include "tests/cuda_emulation/fibers.hpp"

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__) && !defined(STAGECOACH_EMULATION_UCONTEXT)
#define STAGECOACH_EMULATION_ASSEMBLY 1
// stagecoach_switch_stack(void** save, void* load): pushes what a function must preserve, and changes stacks.
// stagecoach_fiber_begin: the first thing on a new stack; its function and argument wait in registers.
asm(R"(
.text
.p2align 4
.type stagecoach_switch_stack, @function
stagecoach_switch_stack:
  .cfi_startproc
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .cfi_endproc
.size stagecoach_switch_stack, . - stagecoach_switch_stack
.p2align 4
.type stagecoach_fiber_begin, @function
stagecoach_fiber_begin:
  .cfi_startproc
  .cfi_undefined rip
  xorl %ebp, %ebp
  movq %r12, %rdi
  call *%r13
  ud2
  .cfi_endproc
.size stagecoach_fiber_begin, . - stagecoach_fiber_begin
)");
extern "C" void stagecoach_switch_stack(void** save, void* load);
extern "C" void stagecoach_fiber_begin();
#endif

namespace stagecoach::cuda_emulation {
namespace {

constexpr std::size_t kStackBytes = 256 * 1024;  // of which a fiber uses a few thousand

// Stacks all begin at the same offset into a page, and would share a few sets of the first-level cache.
std::size_t next_colour() {
  static std::size_t count = 0;
  return (count++ % 31) * 128;
}

// Fiber that was left last; one host thread at a time runs fibers (the device's mutex).
Fiber* left = nullptr;

}  // namespace

Fiber::Fiber(void (*entry)(void*), void* argument) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  void* memory = mmap(nullptr, page + kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<std::byte*>(memory);
  mprotect(memory_, page, PROT_NONE);
  bytes_ = kStackBytes;
  bottom_ = memory_ + page;
  std::byte* top = memory_ + page + kStackBytes - next_colour();
#if defined(STAGECOACH_EMULATION_ASSEMBLY)
  // Popped by the switch: r15, r14, r13, r12, rbx, rbp, and where to go. The stack is aligned to 16 bytes then.
  const std::uintptr_t saved[] = {0,
                                  0,
                                  reinterpret_cast<std::uintptr_t>(entry),
                                  reinterpret_cast<std::uintptr_t>(argument),
                                  0,
                                  0,
                                  reinterpret_cast<std::uintptr_t>(&stagecoach_fiber_begin)};
  std::byte* pointer = top - 64 - sizeof(saved);
  pointer -= (reinterpret_cast<std::uintptr_t>(pointer) + sizeof(saved)) % 16;
  std::memcpy(pointer, saved, sizeof(saved));
  context_ = pointer;
#else
  auto* context = new (top - sizeof(ucontext_t) - 64) ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = memory_ + page;
  context->uc_stack.ss_size = static_cast<std::size_t>(reinterpret_cast<std::byte*>(context) - (memory_ + page));
  context->uc_link = nullptr;
  // makecontext passes integers: a pointer goes in two.
  const auto function_bits = reinterpret_cast<std::uintptr_t>(entry);
  const auto argument_bits = reinterpret_cast<std::uintptr_t>(argument);
  auto begin = +[](unsigned f_high, unsigned f_low, unsigned a_high, unsigned a_low) {
    const auto f = (static_cast<std::uintptr_t>(f_high) << 32) | f_low;
    const auto a = (static_cast<std::uintptr_t>(a_high) << 32) | a_low;
    reinterpret_cast<void (*)(void*)>(f)(reinterpret_cast<void*>(a));
  };
  makecontext(context, reinterpret_cast<void (*)()>(begin), 4, static_cast<unsigned>(function_bits >> 32),
              static_cast<unsigned>(function_bits), static_cast<unsigned>(argument_bits >> 32),
              static_cast<unsigned>(argument_bits));
  context_ = context;
#endif
}

Fiber::~Fiber() {
  if (memory_ == nullptr) return;
  munmap(memory_, static_cast<std::size_t>(sysconf(_SC_PAGESIZE)) + bytes_);
}

void Fiber::entered() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &left->bottom_, &left->bytes_);
#endif
}

void switch_fiber(Fiber& from, Fiber& to) {
  left = &from;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.fake_stack_, to.bottom_, to.bytes_);
#endif
#if defined(STAGECOACH_EMULATION_ASSEMBLY)
  stagecoach_switch_stack(&from.context_, to.context_);
#else
  ucontext_t here;
  void* const target = to.context_;
  from.context_ = &here;
  swapcontext(&here, static_cast<ucontext_t*>(target));
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack_, &left->bottom_, &left->bytes_);
#endif
}

}  // namespace stagecoach::cuda_emulation
