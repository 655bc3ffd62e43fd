// Before anything is loaded: do neighbours hear each other, over the ways that the pipeline will use?
//
// Every stage sends a small known payload to the next one, over the mailbox (from the last stage to the first as well,
// which is how tokens travel) and then over the transport, and checks what it gets. Pairs that talk are measured. Knows
// stages and their names, not how they are connected.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "kernels/backend.hpp"
#include "runtime/transport.hpp"

namespace stagecoach {

struct RingParts {
  std::int32_t stage = 0;
  std::int32_t stages = 1;
  double timeout_s = 60.0;
  Backend* backend = nullptr;
  Mailbox* mailbox = nullptr;
  std::int32_t first_peer = 0;  // of the mailbox: stage s is peer first_peer + s * peer_step
  std::int32_t peer_step = 1;
  Transport* transport = nullptr;
  std::function<std::string(std::int32_t stage)> name;  // "rank 1 (stage 1, host b)"
  std::function<void()> check = {};                     // called while waiting; what it throws ends the test
};

// Of rows from the previous stage; nothing on the first.
struct RingFigures {
  double latency_us = 0.0;  // a small send and the answer to it
  double gigabytes_per_s = 0.0;
};

// Collective. Throws TransportError that names the pair when it is silent for too long or garbles the payload.
std::optional<RingFigures> ring_test(const RingParts& parts);

}  // namespace stagecoach
