#include "tests/cuda_emulation/nccl_post.hpp"

#include <mpi.h>

#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <list>

namespace stagecoach::cuda_emulation {
namespace {

struct Sending {
  std::vector<std::byte> bytes;
  MPI_Request request;
};

// What MPI has not taken yet.
std::list<Sending>& outbox() {
  static auto* const list = new std::list<Sending>;  // outlives MPI_Finalize and static destructors
  return *list;
}

void require(int code) {
  if (code == MPI_SUCCESS) return;
  std::fprintf(stderr, "cuda_emulation: MPI failed with %d\n", code);
  std::abort();
}

void flush() {
  std::list<Sending>& sendings = outbox();
  for (auto it = sendings.begin(); it != sendings.end();) {
    int finished = 0;
    require(MPI_Test(&it->request, &finished, MPI_STATUS_IGNORE));
    it = finished != 0 ? sendings.erase(it) : std::next(it);
  }
}

}  // namespace

int world_rank() {
  int rank = 0;
  require(MPI_Comm_rank(MPI_COMM_WORLD, &rank));
  return rank;
}

void post(int peer, int tag, std::span<const std::byte> bytes) {
  Sending& sending = outbox().emplace_back(std::vector<std::byte>(bytes.begin(), bytes.end()), MPI_REQUEST_NULL);
  require(MPI_Isend(sending.bytes.data(), static_cast<int>(bytes.size()), MPI_BYTE, peer, tag, MPI_COMM_WORLD,
                    &sending.request));
  flush();
}

std::optional<std::vector<std::byte>> take(int peer, int tag) {
  return take_from_any(tag, peer);
}

std::optional<std::vector<std::byte>> take_from_any(int tag, int& peer) {
  flush();
  int found = 0;
  MPI_Message message = MPI_MESSAGE_NULL;
  MPI_Status status;
  require(MPI_Improbe(peer < 0 ? MPI_ANY_SOURCE : peer, tag, MPI_COMM_WORLD, &found, &message, &status));
  if (found == 0) return std::nullopt;
  int count = 0;
  require(MPI_Get_count(&status, MPI_BYTE, &count));
  std::vector<std::byte> bytes(static_cast<std::size_t>(count));
  require(MPI_Mrecv(bytes.data(), count, MPI_BYTE, &message, MPI_STATUS_IGNORE));
  peer = status.MPI_SOURCE;
  return bytes;
}

}  // namespace stagecoach::cuda_emulation
