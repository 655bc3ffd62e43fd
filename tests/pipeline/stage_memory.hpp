// Builds stages of random models with all their buffers and compares what their backends gave out with the byte model.
#pragma once

#include <functional>
#include <memory>

#include "kernels/backend.hpp"
#include "tests/pipeline/harness.hpp"

namespace stagecoach::test {

// Of one kind of device: a backend, and its layout made without it.
struct DeviceUnderTest {
  std::function<std::unique_ptr<Backend>()> backend;
  std::function<std::unique_ptr<MemoryLayout>()> layout;
  bool int8 = true;    // whether it takes int8 weights
  bool shards = true;  // whether its stages may be context shards
};

// One random model and plan: every stage, before and after it has run a full microbatch. Checks with doctest.
void check_stage_memory(Random& random, const DeviceUnderTest& device);

}  // namespace stagecoach::test
