// The rows of a set_rows as they lie in device memory, in 32-bit words: positions, sequences, tokens, page tables.
//
// Where every row continues a sequence of its own, as in decoding, there is room for a few rows more (of position -1:
// padding) and for longer tables, so that successive steps have one layout. Pure arithmetic on the host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/backend.hpp"
#include "kernels/cuda/device_rows.hpp"

namespace stagecoach::cuda {

class RowWords {
 public:
  // Of a view that RowSet accepted.
  void assign(const RowsView& view);

  // Whether steps like this one are worth recording, and the rows that they have then.
  bool repeats() const { return repeats_; }
  std::int64_t padded_rows() const { return room_; }

  std::size_t bytes() const { return words_ * sizeof(std::int32_t); }
  void write(const RowsView& view, std::byte* to) const;
  // The view's rows, without padding, when the words lie at `device`.
  DeviceRows at(const std::int32_t* device) const;

 private:
  bool repeats_ = false;
  bool tokens_ = false;
  std::int64_t rows_ = 0;
  std::int64_t room_ = 0;
  std::int64_t tables_ = 0;
  std::int64_t stride_ = 0;  // of a table
  std::size_t words_ = 0;
};

}  // namespace stagecoach::cuda
