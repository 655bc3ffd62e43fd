// A transport for tensors in a device's own memory, over one that only knows host memory: they pass through host
// buffers that the device copies from and to at full speed.
//
// Sends copy to the host after the operations queued so far and then go out; receives come in and are copied to the
// device before the operations queued from then on. Host buffers are kept and used again: one is made for each
// place that is prepared, and more only for what was not. Both the transport and the backend must outlive it.
#pragma once

#include <memory>

#include "kernels/backend.hpp"
#include "runtime/transport.hpp"

namespace stagecoach {

// `inner` itself for a backend in host memory.
std::unique_ptr<Transport> make_staged_transport(std::unique_ptr<Transport> inner, Backend& backend);

}  // namespace stagecoach
