// How ranks of one pipeline talk: tensors along the chain of stages, small messages between any two.
//
// Peers are stage numbers. Each rank makes all calls from one thread. Nothing here blocks: sends and receives are
// started and polled, and waits with their deadlines live in the pipeline loops. Contents are not interpreted.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <stdexcept>
#include <vector>

#include "kernels/tensor.hpp"

namespace stagecoach {

// A peer is lost or silent, or a message is not what was agreed.
class TransportError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Small byte messages, FIFO per (peer, channel).
enum class Channel : std::uint8_t { kHeader = 0, kTokens = 1, kAlive = 2, kReport = 3, kWork = 4, kResults = 5 };
inline constexpr int kChannels = 6;

class Mailbox {
 public:
  virtual ~Mailbox() = default;
  // Takes a copy; returns at once.
  virtual void post(int peer, Channel channel, std::span<const std::byte> bytes) = 0;
  // The next message of `peer` on `channel`, if it has arrived.
  virtual std::optional<std::vector<std::byte>> take(int peer, Channel channel) = 0;
  // True when every posted message has left; also moves pending ones along.
  virtual bool flushed() = 0;
};

// Tensors to the next stage and from the previous one, or to and from another shard of the same stage, in order. Rows
// must be contiguous (stride == cols).
class Transport {
 public:
  using Ticket = std::uint64_t;
  virtual ~Transport() = default;
  // Starts sending to the next stage. The memory must stay untouched until done(ticket).
  virtual Ticket send(Tensor tensor) = 0;
  // Starts receiving from the previous stage into memory that must not be used until done(ticket).
  virtual Ticket receive(Tensor tensor) = 0;
  // True when the operation has finished (or, on a device, stands before all work queued from now on). Polls.
  // A ticket that was reported done must not be asked again.
  virtual bool done(Ticket ticket) = 0;
  // For a receive that is not done: makes the device's queue wait for it, so that operations queued from now on may use
  // the memory; true when that is so. `done` is to be asked all the same, until it says true. Where tensors pass
  // through the host it cannot be.
  virtual bool wait_on_device(Ticket) { return false; }
  // Memory that tensors to be sent or received will lie in: a chance to make it known to the network.
  virtual void prepare(std::span<std::byte>) {}
  // For a stage that gives up, before it lets go of its memory: what is open is dropped, and nothing touches the memory
  // of a receive any more, not even a peer in this process. When it is true, nor that of a send; otherwise that may be
  // read until the process ends and must stay (Buffer::leave). No other call may follow. Waits for no peer.
  [[nodiscard]] virtual bool abandon() noexcept = 0;
};

}  // namespace stagecoach
