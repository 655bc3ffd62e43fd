#include "runtime/staged_transport.hpp"

#include <fmt/format.h>

#include <map>
#include <stdexcept>
#include <utility>
#include <vector>

namespace stagecoach {
namespace {

class StagedTransport final : public Transport {
 public:
  StagedTransport(std::unique_ptr<Transport> inner, Backend& backend) : backend_(backend), inner_(std::move(inner)) {}

  Ticket send(Tensor tensor) override {
    Buffer host = host_buffer(tensor.bytes());
    const Backend::Copy copy = backend_.start_download(host.data(), tensor.data, tensor.bytes());
    return open({.tensor = tensor, .host = std::move(host), .id = copy, .step = Step::kToHost});
  }

  Ticket receive(Tensor tensor) override {
    Buffer host = host_buffer(tensor.bytes());
    const Ticket ticket = inner_->receive(on_host(tensor, host));
    return open({.tensor = tensor, .host = std::move(host), .id = ticket, .step = Step::kArriving});
  }

  // A send is done when it has left the host buffer; a receive when its copy to the device stands in the queue.
  bool done(Ticket ticket) override {
    const auto found = moves_.find(ticket);
    if (found == moves_.end() || found->second.step == Step::kToDevice) {
      throw std::invalid_argument(fmt::format("ticket {} is not open", ticket));
    }
    retire_uploads();
    Move& move = found->second;
    if (move.step == Step::kToHost && backend_.finished(move.id)) {
      move.id = inner_->send(on_host(move.tensor, move.host));
      move.step = Step::kLeaving;
    }
    if (move.step == Step::kToHost || !inner_->done(move.id)) return false;
    if (move.step == Step::kArriving) {
      move.id = backend_.start_upload(move.tensor.data, move.host.data(), move.tensor.bytes());
      move.step = Step::kToDevice;
      return true;  // the host buffer is the copy's a little longer
    }
    spare_.push_back(std::move(move.host));
    moves_.erase(found);
    return true;
  }

  // Each such place is part of one operation at a time, so as many host buffers of its size serve all of them.
  void prepare(std::span<std::byte> place) override {
    spare_.push_back(backend_.allocate_host(static_cast<std::int64_t>(place.size())));
  }

  bool abandon() noexcept override {
    if (!inner_->abandon()) {
      for (auto& [ticket, move] : moves_) {
        if (move.step == Step::kLeaving || move.step == Step::kArriving) move.host.leave();
      }
    }
    moves_.clear();  // letting go of a host buffer waits for the device's copies
    return true;
  }

 private:
  enum class Step : std::uint8_t { kToHost, kLeaving, kArriving, kToDevice };
  struct Move {
    Tensor tensor;
    Buffer host;
    std::uint64_t id = 0;  // of the copy (kToHost, kToDevice) or the inner transport's ticket
    Step step = Step::kToHost;
  };

  static Tensor on_host(Tensor tensor, const Buffer& host) {
    return make_tensor(host.data(), tensor.dtype, tensor.rows, tensor.cols);
  }

  Ticket open(Move move) {
    moves_.emplace(++last_ticket_, std::move(move));
    return last_ticket_;
  }

  void retire_uploads() {
    for (auto it = moves_.begin(); it != moves_.end();) {
      if (it->second.step == Step::kToDevice && backend_.finished(it->second.id)) {
        spare_.push_back(std::move(it->second.host));
        it = moves_.erase(it);
      } else {
        ++it;
      }
    }
  }

  // The smallest spare one that is large enough.
  Buffer host_buffer(std::int64_t bytes) {
    retire_uploads();
    std::size_t best = spare_.size();
    for (std::size_t i = 0; i < spare_.size(); ++i) {
      if (static_cast<std::int64_t>(spare_[i].bytes()) < bytes) continue;
      if (best == spare_.size() || spare_[i].bytes() < spare_[best].bytes()) best = i;
    }
    if (best == spare_.size()) return backend_.allocate_host(bytes);
    Buffer found = std::move(spare_[best]);
    spare_.erase(spare_.begin() + static_cast<std::ptrdiff_t>(best));
    return found;
  }

  Backend& backend_;
  Ticket last_ticket_ = 0;
  std::map<Ticket, Move> moves_;
  std::vector<Buffer> spare_;
  std::unique_ptr<Transport> inner_;  // goes first: it may know host buffers
};

}  // namespace

std::unique_ptr<Transport> make_staged_transport(std::unique_ptr<Transport> inner, Backend& backend) {
  if (backend.in_host_memory()) return inner;
  return std::make_unique<StagedTransport>(std::move(inner), backend);
}

}  // namespace stagecoach
