// From logits on a backend to picked tokens: on a device with memory of its own, only what picking needs of each row
// travels to the host, which draws from it.
//
// Owns the memory that answers pass through. Knows rows and logits; how a slot samples is the SlotSampler's.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "kernels/backend.hpp"
#include "runtime/slot_sampler.hpp"

namespace stagecoach {

class TokenPicker {
 public:
  using Progress = std::function<void()>;

  // For up to `max_rows` rows at once; none where no tokens are picked.
  TokenPicker(Backend& backend, std::int64_t max_rows, std::int64_t vocab_size);

  // Appends the answers to `rows`, all of which want their logits, to `picked`, in order. `logits` (rows.size(), vocab)
  // on the backend are left as they are. Calls `progress` while waiting.
  void pick(SlotSampler& sampler, std::span<const Row> rows, Tensor logits, const Progress& progress,
            std::vector<PickedToken>& picked);

 private:
  void pick_on_device(SlotSampler& sampler, std::span<const Row> rows, Tensor logits, const Progress& progress,
                      std::vector<PickedToken>& picked);
  void start_download(void* host, const void* device, std::int64_t bytes);
  void start_rows(Tensor logits);
  void wait(const Progress& progress);
  std::span<const float> host_row(std::size_t r) const;

  Backend& backend_;
  std::int64_t vocab_size_;
  // Where the backend has memory of its own.
  Buffer summaries_;  // on the device
  Buffer host_summaries_;
  Buffer host_logits_;                 // (max_rows, vocab)
  std::vector<LogitsQuery> queries_;   // one per row
  std::vector<bool> whole_;            // [row]: all of its logits are needed
  std::vector<Backend::Copy> copies_;  // under way
};

}  // namespace stagecoach
