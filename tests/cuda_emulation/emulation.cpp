#include "tests/cuda_emulation/emulation.hpp"

#include "tests/cuda_emulation/machine_state.hpp"

namespace stagecoach::cuda_emulation {

void reset(const Options& options) {
  Machine& m = machine();
  const std::lock_guard lock(m.mutex);
  m.reset(options);
}

void schedule(Timing timing, Order order, std::uint64_t seed, bool early_copies) {
  Machine& m = machine();
  const std::lock_guard lock(m.mutex);
  m.options.timing = timing;
  m.options.order = order;
  m.options.seed = seed;
  m.options.early_copies = early_copies;
  m.random = Random(seed);
}

void fail_call(std::uint64_t n, int error, bool sticky) {
  Machine& m = machine();
  const std::lock_guard lock(m.mutex);
  m.fail_at = n == 0 ? 0 : m.calls + n;
  m.fail_with = error;
  m.fail_sticky = sticky;
  m.failed_call.clear();
  m.failed_in_capture = false;
}

std::string failed_call() {
  Machine& m = machine();
  const std::lock_guard lock(m.mutex);
  return m.failed_call;
}

bool failed_in_capture() {
  Machine& m = machine();
  const std::lock_guard lock(m.mutex);
  return m.failed_in_capture;
}

std::uint64_t graph_launches() {
  Machine& m = machine();
  const std::lock_guard lock(m.mutex);
  return m.graph_launches;
}

std::uint64_t calls() {
  Machine& m = machine();
  const std::lock_guard lock(m.mutex);
  return m.calls;
}

Live live() {
  Machine& m = machine();
  const std::lock_guard lock(m.mutex);
  return m.live();
}

void mutate(const Mutations& mutations) {
  Machine& m = machine();
  const std::lock_guard lock(m.mutex);
  m.mutations = mutations;
}

std::string last_fault() {
  Machine& m = machine();
  const std::lock_guard lock(m.mutex);
  return m.last_fault;
}

}  // namespace stagecoach::cuda_emulation
