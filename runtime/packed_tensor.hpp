// Packed matrices (weight_layout.hpp) of a source: which tensors can be packed, and reading one panel by panel.
//
// Panels are verified against their checksum as rows are, but their values are searched for what is not finite only
// when they are converted: whoever wrote the file has searched them, and the checksum says that these are the same. At
// the speed of the rest, the search would take a third of the time.
//
// Knows names and shapes of the model and the description of the layout; what stands where inside a panel is the
// kernels' matter.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <vector>

#include "kernels/weight_layout.hpp"
#include "partition/stage_bytes.hpp"
#include "runtime/weight_source.hpp"

namespace stagecoach {

WeightLayout row_layout_of(const TensorSpec& matrix);
PackedLayout packed_layout_of(const TensorSpec& matrix, DType dtype);
// The dimensions of its dataset in a file.
std::vector<std::int64_t> stored_shape(const TensorSpec& spec, DType dtype, bool packed);
// Bytes of the tensor in `source`.
std::int64_t stored_bytes(const WeightSource& source, const TensorSpec& spec);

// The checksum of a packed matrix, which threads can verify panel by panel in any order: the XXH3-64 of its panels'
// XXH3-64s, each as 8 bytes, little-endian, in order.
std::uint64_t checksum_of_panels(const std::vector<std::uint64_t>& panels);

// One packed matrix of `source`, for a caller that converts it to `to`. Each panel must be read once before `finish`.
// Calls for different panels may run at once.
class PackedReader {
 public:
  PackedReader(const WeightSource& source, const TensorSpec& spec, DType to);

  const PackedLayout& layout() const { return layout_; }
  void read(std::int64_t first, std::int64_t count, std::byte* panels);
  // Throws WeightError when the checksum does not match, or else for the first value found that is not finite or that
  // `to` cannot hold, if that is another dtype.
  void finish() const;

 private:
  struct Broken {
    std::int64_t panel = 0;
    PanelPlace place;
  };

  const WeightSource& source_;
  const TensorSpec& spec_;
  DType to_;
  PackedLayout layout_;
  std::vector<std::uint64_t> checksums_;  // by panel
  std::mutex mutex_;
  std::optional<Broken> broken_;  // of the first such panel
};

}  // namespace stagecoach
