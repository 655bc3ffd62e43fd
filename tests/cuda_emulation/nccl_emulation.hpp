// How tests steer the emulated NCCL. Its communicators have two ranks, which are ranks of one MPI job, and are
// non-blocking; it moves by MPI messages, and only while someone asks. All its MPI calls come from the threads that
// poll: aborting makes none.
//
// emulation.hpp's fail_call counts these calls too (not those that only tell versions, texts and the last error): they
// fail with ncclSystemError for cudaErrorUnknown, otherwise with ncclUnhandledCudaError.
#pragma once

#include <cstddef>
#include <cstdint>

namespace stagecoach::cuda_emulation::nccl {

struct Behaviour {
  // A send or receive ends up to so many polls after its rows have moved, and a call says ncclInProgress for up to so
  // many.
  int most_polls = 3;
  bool hang_abort = false;     // ncclCommAbort does not return while this is set
  bool hang_init = false;      // communicators do not become ready
  bool refuse_memory = false;  // ncclCommRegister fails
};
void behave(const Behaviour& behaviour, std::uint64_t seed = 1);

// The n-th ncclCommGetAsyncError from now (1: the next) finds `result`, a value of ncclResult_t, in its communicator,
// and so do all later ones. 0 cancels.
void fail_async(std::uint64_t n, int result);
// This process stops working for its peers, as one that died: they never hear of it again or, when `noticed`, find
// ncclRemoteError.
void die(bool noticed);
// Alive again, for the next communicators.
void revive();

struct Live {
  std::size_t communicators = 0, registrations = 0;
  bool operator==(const Live&) const = default;
};
Live live();

}  // namespace stagecoach::cuda_emulation::nccl
