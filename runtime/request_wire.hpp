// Requests and samples as bytes: in messages between replicas, and in journals.
//
// Reading takes any bytes: it throws WireError for what was never written, and what it returns encodes to the bytes
// that it came from.
#pragma once

#include "runtime/request.hpp"
#include "runtime/wire.hpp"

namespace stagecoach {

void put(wire::Writer& out, const SamplingOptions& options);
SamplingOptions read_sampling_options(wire::Reader& in);

// What a scheduler needs of it: without `id` and `prompt`, which stay with whoever writes results.
void put(wire::Writer& out, const Request& request);
Request read_request(wire::Reader& in);

void put(wire::Writer& out, const Sample& sample);
Sample read_sample(wire::Reader& in);

}  // namespace stagecoach
