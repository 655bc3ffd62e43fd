// Small messages between ranks of the MPI job for the emulated NCCL: copied when sent, FIFO per (peer, tag).
//
// Everything is sent in pieces that MPI takes at once, so that a peer that never receives holds nothing up. Knows
// neither CUDA nor NCCL. One thread at a time.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <vector>

namespace stagecoach::cuda_emulation {

int world_rank();
void post(int peer, int tag, std::span<const std::byte> bytes);
std::optional<std::vector<std::byte>> take(int peer, int tag);
// From anyone; fills `peer`.
std::optional<std::vector<std::byte>> take_from_any(int tag, int& peer);

}  // namespace stagecoach::cuda_emulation
