// The tensors of a list, piece by piece, read and verified ahead on a thread of its own while the caller packs what
// came before. Pieces come in order, as TensorReader gives them, and so do its errors.
//
// The source is used by that thread alone while the stream lives, and the list must outlive the stream. At most
// kPiecesAhead pieces are in memory, each in a buffer of its own as large as the largest that it has held.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "kernels/tensor.hpp"
#include "runtime/tensor_pieces.hpp"

namespace stagecoach {

class PieceStream {
 public:
  static constexpr std::size_t kPiecesAhead = 3;

  struct Piece {
    const TensorSpec* spec = nullptr;
    std::int64_t first_row = 0;
    Tensor host;  // valid until the next call of next()
  };

  // `dtype_of`: what the caller converts a tensor to, as for TensorReader::read_in_pieces. `allocate` gives the pieces'
  // buffers; the reading thread calls it.
  PieceStream(const WeightSource& source, std::span<const TensorSpec> specs,
              std::function<DType(const TensorSpec&)> dtype_of, std::function<Buffer(std::int64_t bytes)> allocate);
  ~PieceStream();
  PieceStream(const PieceStream&) = delete;
  PieceStream& operator=(const PieceStream&) = delete;

  // None at the end. Throws what reading threw (WeightError), after the pieces before it.
  std::optional<Piece> next();

 private:
  struct Ready {
    Piece piece;
    std::size_t buffer = 0;
  };
  struct Stopped {};  // ends the reader's thread

  void read(const WeightSource& source, std::span<const TensorSpec> specs,
            const std::function<DType(const TensorSpec&)>& dtype_of);
  std::byte* free_buffer(std::size_t bytes);

  std::function<Buffer(std::int64_t)> allocate_;
  std::vector<Buffer> buffers_;
  std::size_t filling_ = 0;  // the reader's buffer

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::size_t> free_;
  std::deque<Ready> ready_;
  std::optional<std::size_t> lent_;  // the caller's buffer
  bool finished_ = false;
  bool stop_ = false;
  std::exception_ptr error_;

  std::thread thread_;  // last: starts when all else is there
};

}  // namespace stagecoach
