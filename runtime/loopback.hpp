// Stages as threads of one process, of one pipeline or several side by side: a Mailbox and a Transport per stage over
// shared memory.
//
// The hub outlives its stages' endpoints. In rendezvous mode a send is done only when its receive has been posted, as a
// large message over MPI or NCCL behaves, which exposes deadlocks that buffering would hide. When a stage fails it
// calls `fail`; from then on every call of the others throws TransportError, so that no thread waits for ever.
#pragma once

#include <memory>
#include <string>

#include "runtime/transport.hpp"

namespace stagecoach {

enum class LoopbackMode : std::uint8_t { kBuffered, kRendezvous };

class LoopbackHub {
 public:
  explicit LoopbackHub(LoopbackMode mode);
  ~LoopbackHub();
  LoopbackHub(const LoopbackHub&) = delete;
  LoopbackHub& operator=(const LoopbackHub&) = delete;

  // Peer p of it is stage first + p of the hub, as MpiProcess::mailbox has it for ranks.
  std::unique_ptr<Mailbox> mailbox(int stage, int first = 0);
  // Of the chain.
  std::unique_ptr<Transport> transport(int stage) { return transport(stage, stage - 1, stage + 1); }
  // Between any; a pair has one link in each direction.
  std::unique_ptr<Transport> transport(int stage, int previous, int next);
  // The first reason is kept.
  void fail(const std::string& reason);

 private:
  friend class LoopbackMailbox;
  friend class LoopbackTransport;
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace stagecoach
