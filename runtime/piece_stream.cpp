#include "runtime/piece_stream.hpp"

#include <utility>

namespace stagecoach {

PieceStream::PieceStream(const WeightSource& source, std::span<const TensorSpec> specs,
                         std::function<DType(const TensorSpec&)> dtype_of, std::function<Buffer(std::int64_t)> allocate)
    : allocate_(std::move(allocate)), buffers_(kPiecesAhead) {
  for (std::size_t b = 0; b < kPiecesAhead; ++b) free_.push_back(b);
  thread_ = std::thread([this, &source, specs, dtype_of = std::move(dtype_of)] { read(source, specs, dtype_of); });
}

PieceStream::~PieceStream() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

std::optional<PieceStream::Piece> PieceStream::next() {
  std::unique_lock lock(mutex_);
  if (lent_) {
    free_.push_back(*std::exchange(lent_, std::nullopt));
    changed_.notify_all();
  }
  changed_.wait(lock, [this] { return !ready_.empty() || finished_; });
  if (!ready_.empty()) {
    const Ready ready = ready_.front();
    ready_.pop_front();
    lent_ = ready.buffer;
    return ready.piece;
  }
  if (error_) std::rethrow_exception(error_);
  return std::nullopt;
}

std::byte* PieceStream::free_buffer(std::size_t bytes) {
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !free_.empty() || stop_; });
    if (stop_) throw Stopped();
    filling_ = free_.back();
    free_.pop_back();
  }
  Buffer& buffer = buffers_[filling_];
  if (buffer.bytes() < bytes) {
    buffer = Buffer();
    buffer = allocate_(static_cast<std::int64_t>(bytes));
  }
  return static_cast<std::byte*>(buffer.data());
}

void PieceStream::read(const WeightSource& source, std::span<const TensorSpec> specs,
                       const std::function<DType(const TensorSpec&)>& dtype_of) {
  std::exception_ptr error;
  try {
    TensorReader reader(source, [this](std::size_t bytes) { return free_buffer(bytes); });
    for (const TensorSpec& spec : specs) {
      reader.read_in_pieces(spec, dtype_of(spec), [&](std::int64_t first_row, Tensor host) {
        const std::lock_guard lock(mutex_);
        ready_.push_back({{&spec, first_row, host}, filling_});
        changed_.notify_all();
      });
    }
  } catch (const Stopped&) {
  } catch (...) {
    error = std::current_exception();
  }
  const std::lock_guard lock(mutex_);
  error_ = error;
  finished_ = true;
  changed_.notify_all();
}

}  // namespace stagecoach
