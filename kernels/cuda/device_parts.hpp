// What attention in parts needs on the device beside its rows: the plans of its calls, and which parts are merged. All
// blocks of a model ask for the same, so each is brought there once.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cuda/device_pool.hpp"
#include "kernels/cuda/own_memory.hpp"
#include "kernels/cuda/part_plans.hpp"
#include "kernels/cuda/upload_ring.hpp"

namespace stagecoach::cuda {

class DeviceParts {
 public:
  // Uploads are queued on `stream`; all three must outlive it.
  DeviceParts(DevicePool& pool, UploadRing& uploads, cudaStream_t stream)
      : pool_(pool), uploads_(uploads), stream_(stream) {}

  void reserve(const OwnMemory& own);
  // The rows have changed.
  void forget_plans() { plans_.forget(); }

  struct Planned {
    const AttentionPlan& plan;
    const std::int32_t* words;
  };
  // Of the parts of `count` rows from `first` on; until the next call.
  Planned plan(const RowSet& rows, std::int32_t n_head, std::int64_t first, std::int64_t count, bool deterministic,
               int multiprocessors);
  // The words of cuda::merge_parts.
  const std::int32_t* merging(std::span<const std::int32_t> first, std::span<const std::int32_t> numbers);

 private:
  void send(std::span<const std::int32_t> words, std::int32_t* device);

  DevicePool& pool_;
  UploadRing& uploads_;
  cudaStream_t stream_;
  Buffer plan_words_, merge_words_;
  PartPlans plans_;                   // whose words are in plan_words_
  std::vector<std::int32_t> merged_;  // what merge_words_ holds
  std::vector<std::int32_t> wanted_;
};

}  // namespace stagecoach::cuda
