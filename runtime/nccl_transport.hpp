// Transport over NCCL, for stages that are ranks with a GPU each: rows go from device to device without the hosts.
//
// Each link, from a stage to the next, has a communicator of its two ranks and, on each of them, a stream: the upstream
// rank only sends on it, the downstream one only receives. Events order these streams with the queue of the backend, so
// that no host waits between computing and sending, nor between receiving and computing. Calls return at once: the
// communicators are non-blocking, and what NCCL answers with "in progress" is asked about by every later call.
//
// Why this cannot deadlock. A link waits for nothing but its own two ends. The sender needs nothing further from
// downstream once a header is out; the receiver posts its receive when that header arrives, so both ends of a transfer
// begin, in one order: that of the headers. Where one stage's kernels wait for room on the GPU, the links are a chain:
// the last stage only receives, so that its transfer can always go on, then that of the stage before it can, and so on.
// Context shards send to each other and receive at the same time, over two links of a pair: there must be room for the
// kernels of both, which take a few blocks each.
// The host never waits for the device inside a call, and in a queue operations only ever wait for earlier ones.
//
// Why no wait is for ever. Errors that NCCL finds by itself are polled for. A peer that falls silent is the pipeline
// loop's to notice, over the Mailbox. A peer that lives while the link is broken is noticed by the sender: rows that
// have been ready for `timeout_s` and are not taken. Then communicators are aborted on threads of their own, for that
// call has been known to hang; after a limit they are left to themselves, with everything that they refer to, and all
// that can still be done is to end the process without asking the device (destroying the backend could wait for it).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "runtime/transport.hpp"

namespace stagecoach {

namespace cuda {
struct DeviceQueue;
}

// "NCCL 2.28.9"; empty in a build without.
std::string nccl_version();

// What two ranks need to find each other, made by the upstream one.
using NcclId = std::array<std::byte, 128>;
// Throws TransportError.
NcclId make_nccl_id();

struct NcclLink {
  NcclId id = {};
  std::string peer;  // for messages: "rank 1 (stage 1, host b)"
};

struct NcclOptions {
  std::optional<NcclLink> previous;  // of every stage but the first; of a pair of shards, from the other one
  std::optional<NcclLink> next;      // of every stage but the last; of a pair of shards, to the other one
  std::string self;                  // for messages, as `peer`
  double timeout_s = 60.0;
  double abort_limit_s = 10.0;
  bool waits_on_device = true;  // false where the host waits for the device in ways that do not end when a peer is lost
  std::function<void()> check = {};  // called while connecting; what it throws ends that
};

// Connects to both neighbours, who must do the same now. Throws TransportError that names the peer, DeviceError. The
// backend of `queue` must outlive it.
std::unique_ptr<Transport> make_nccl_transport(const NcclOptions& options, const cuda::DeviceQueue& queue);

}  // namespace stagecoach
