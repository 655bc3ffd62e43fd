// How tests steer the emulated machine and look into it. The machine is one per process; all functions may be called
// from any thread, but not from a kernel.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace stagecoach::cuda_emulation {

// When queued work runs: at the call, or not before something waits for it (and then that stream alone, with what its
// event waits ask for).
enum class Timing : std::uint8_t { kImmediate, kLate };
// The order of threads between barriers, and of blocks.
enum class Order : std::uint8_t { kForward, kBackward, kShuffled };

struct Options {
  Timing timing = Timing::kLate;
  Order order = Order::kShuffled;
  std::uint64_t seed = 1;
  // Asynchronous copies into shared memory land when a kernel waits for them; with this, when they are started.
  bool early_copies = false;
  int devices = 1;
  std::size_t memory_bytes = std::size_t{2} << 30;  // per device
  bool driver = true;
};

// A new machine: drops all memory, queued work, handles, errors, mutations and counts of the old one.
void reset(const Options& options = {});
// Changes when and in which order work runs from now on.
void schedule(Timing timing, Order order, std::uint64_t seed = 1, bool early_copies = false);

// Makes the n-th call from now (1: the next) fail with a value of cudaError_t; `sticky` breaks its device as well, as a
// fault of a kernel does. Calls that release something release it and then fail. cuBLASLt calls count, too, and fail
// with CUBLAS_STATUS_ALLOC_FAILED for cudaErrorMemoryAllocation, else CUBLAS_STATUS_EXECUTION_FAILED. 0 cancels.
// Calls that only tell errors, versions or sizes of the machine (cudaGetLastError, cudaGetErrorString, ...) do not
// count.
void fail_call(std::uint64_t n, int error, bool sticky = false);
// The name of the call that fail_call made fail; empty before. Whether the thread that made it was capturing.
std::string failed_call();
bool failed_in_capture();
// Graphs launched since reset.
std::uint64_t graph_launches();
std::uint64_t calls();  // since reset

// What is alive.
struct Live {
  std::size_t device_allocations = 0, device_bytes = 0, pinned_allocations = 0, streams = 0, events = 0;
  std::size_t graphs = 0;          // captured and instantiated ones
  std::size_t cublas_objects = 0;  // handles, descriptors, layouts, preferences
  bool operator==(const Live&) const = default;
};
Live live();

// Mistakes that tests must notice.
struct Mutations {
  int drop_waits = 0;          // so many of the next cudaStreamWaitEvent do nothing; negative: all
  int cut_every = 0;           // every so many launches the last block does not run; 0: never
  bool no_barriers = false;    // __syncthreads does nothing
  bool no_copy_waits = false;  // copies into shared memory never land, unless early
  int forget_every = 0;        // every so many captured operations are left out of their graph; 0: never
  bool first_graph = false;    // cudaGraphLaunch launches the oldest graph of the device, whichever it was given
};
void mutate(const Mutations& mutations);

// What the last kernel fault was: the bad barrier, overrun or copy, with block and thread; empty before.
std::string last_fault();

}  // namespace stagecoach::cuda_emulation
