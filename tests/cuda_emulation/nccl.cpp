// The emulated NCCL: communicators of two ranks that shake hands, and sends and receives as operations of streams.
//
// A receive that reaches the front of its stream tells the sender so; only then do the rows leave, as with a
// rendezvous.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <utility>

#include "tests/cuda_emulation/machine_state.hpp"
#include "tests/cuda_emulation/nccl_api.hpp"
#include "tests/cuda_emulation/nccl_emulation.hpp"
#include "tests/cuda_emulation/nccl_post.hpp"

namespace emulation = stagecoach::cuda_emulation;
using emulation::Kind;
using emulation::Machine;

namespace {

constexpr std::size_t kPiece = 2048;  // that MPI takes at once
enum class Tag { kHello, kPosted, kRows, kGone };

struct Id {
  std::uint32_t magic = 0x4e43434c;
  std::int32_t owner = 0;  // world rank
  std::int32_t number = 0;
};

struct Hello {
  char host[64] = {};
  std::int32_t device = 0;
};

// What a communicator is to the operations in streams, which may outlive the handle.
struct Peer {
  Id id;
  int rank = 0;    // in the communicator: 0 or 1
  int world = -1;  // of the other one; -1 not known yet
  bool greeted = false, ready = false, ended = false, finalizing = false;
  ncclResult_t result = ncclSuccess;
  std::int64_t open = 0;  // operations

  int tag(Tag which) const { return 0x100000 + ((id.owner * 4096 + id.number % 4096) * 4 + static_cast<int>(which)); }
};

}  // namespace

struct ncclComm {
  std::shared_ptr<Peer> peer;
  int device = 0;
  std::function<void()> waiting;  // the call that is in progress
  int polls = 0;                  // until it is made
  std::set<void*> registered;
};

namespace {

struct Library {
  std::map<ncclComm_t, std::unique_ptr<ncclComm>> comms;
  emulation::nccl::Behaviour behaviour;
  std::mt19937_64 random{1};
  std::int32_t ids = 0;
  std::uint64_t fail_in = 0;
  ncclResult_t fail_with = ncclSuccess;
  bool dead = false;

  int some_polls() { return std::uniform_int_distribution<int>(0, behaviour.most_polls)(random); }
};

// Under the machine's mutex, like everything below.
Library& library() {
  static Library the_library;
  return the_library;
}

template <Kind kKind = Kind::kUses, typename Body>
ncclResult_t counted(const char* name, Body body) {
  Machine& m = emulation::machine();
  const std::lock_guard lock(m.mutex);
  const cudaError_t early = emulation::begin_call(m, name);
  const ncclResult_t failed = early == cudaErrorUnknown ? ncclSystemError : ncclUnhandledCudaError;
  if (kKind == Kind::kUses && early != cudaSuccess) return failed;
  const ncclResult_t result = body(m);
  return early != cudaSuccess ? failed : result;
}

ncclComm* find(ncclComm_t handle) {
  const auto found = library().comms.find(handle);
  return found == library().comms.end() ? nullptr : found->second.get();
}

Hello own_hello(int device) {
  Hello hello;
  const char* named = std::getenv("NCCL_HOSTID");
  if (named != nullptr) {
    std::snprintf(hello.host, sizeof hello.host, "%s", named);
  } else {
    gethostname(hello.host, sizeof hello.host - 1);
  }
  hello.device = device;
  return hello;
}

// The rank that made the id waits to hear from the other one and answers.
void shake_hands(ncclComm& comm) {
  Peer& peer = *comm.peer;
  if (library().behaviour.hang_init) return;
  const bool owns = peer.id.owner == emulation::world_rank();
  const Hello mine = own_hello(comm.device);
  const auto greet = [&] {
    emulation::post(peer.world, peer.tag(Tag::kHello), std::as_bytes(std::span(&mine, 1)));
    peer.greeted = true;
  };
  if (!owns) peer.world = peer.id.owner;
  if (!owns && !peer.greeted) greet();
  const auto answer = emulation::take_from_any(peer.tag(Tag::kHello), peer.world);
  if (!answer) return;
  if (owns) greet();
  Hello other;
  std::memcpy(&other, answer->data(), sizeof other);
  peer.ready = true;
  // Two ranks on one device of one host.
  if (std::strcmp(mine.host, other.host) == 0 && mine.device == other.device) peer.result = ncclInvalidUsage;
}

ncclResult_t poll(ncclComm& comm) {
  Library& l = library();
  Peer& peer = *comm.peer;
  if (l.fail_in > 0 && --l.fail_in == 0) peer.result = l.fail_with;
  if (l.dead) return peer.ready ? peer.result : ncclInProgress;
  if (peer.result == ncclSuccess && !peer.ready) shake_hands(comm);
  if (peer.world >= 0 && emulation::take(peer.world, peer.tag(Tag::kGone))) peer.result = ncclRemoteError;
  if (peer.result != ncclSuccess) return peer.result;
  if (!peer.ready) return ncclInProgress;
  if (comm.waiting) {
    if (--comm.polls > 0) return ncclInProgress;
    std::exchange(comm.waiting, nullptr)();
  }
  return peer.finalizing && peer.open > 0 ? ncclInProgress : ncclSuccess;
}

// Rows on their way between the device and MPI.
struct Move {
  std::shared_ptr<Peer> peer;
  std::vector<std::byte> rows;
  std::size_t arrived = 0;
  bool posted = false, moved = false;
  int polls = 0;

  // True when the operation is over. One that fails spins until its communicator is aborted, as kernels do.
  bool over() {
    if (peer->ended) return true;
    if (library().dead || peer->result != ncclSuccess) return false;
    return moved && polls-- <= 0;
  }
};

bool push(Move& move) {
  const auto usable = [&] { return !move.peer->ended && !library().dead && move.peer->result == ncclSuccess; };
  if (!move.moved && usable()) {
    if (const auto posted = emulation::take(move.peer->world, move.peer->tag(Tag::kPosted))) {
      std::uint64_t wanted = 0;
      std::memcpy(&wanted, posted->data(), sizeof wanted);
      if (wanted != move.rows.size()) {
        move.peer->result = ncclInternalError;
        return false;
      }
      for (std::size_t first = 0; first < move.rows.size(); first += kPiece) {
        const std::size_t bytes = std::min(kPiece, move.rows.size() - first);
        emulation::post(move.peer->world, move.peer->tag(Tag::kRows), std::span(move.rows).subspan(first, bytes));
      }
      move.moved = true;
    }
  }
  return move.over();
}

bool pull(Move& move) {
  if (!move.moved && !move.peer->ended && !library().dead && move.peer->result == ncclSuccess) {
    if (!move.posted) {
      const std::uint64_t wanted = move.rows.size();
      emulation::post(move.peer->world, move.peer->tag(Tag::kPosted), std::as_bytes(std::span(&wanted, 1)));
      move.posted = true;
    }
    while (move.arrived < move.rows.size()) {
      const auto piece = emulation::take(move.peer->world, move.peer->tag(Tag::kRows));
      if (!piece) break;
      std::memcpy(move.rows.data() + move.arrived, piece->data(), piece->size());
      move.arrived += piece->size();
    }
    move.moved = move.arrived == move.rows.size();
  }
  return move.over();
}

struct Call {
  const void* memory;
  std::size_t count;
  ncclDataType_t type;
  int peer;
  ncclComm_t comm;
  cudaStream_t stream;
};

// Checks the call and makes it: at once, or after some polls.
template <typename Enqueue>
ncclResult_t enqueue(Machine& m, const Call& call, Enqueue make) {
  ncclComm* const comm = find(call.comm);
  std::uint64_t stream = 0;
  int device = 0;
  if (comm == nullptr || !m.find_stream(call.stream, stream, device)) return ncclInvalidArgument;
  if (comm->peer->result != ncclSuccess) return comm->peer->result;
  if (!comm->peer->ready || comm->waiting || comm->peer->finalizing || device != comm->device ||
      call.peer != 1 - comm->peer->rank || (call.type != ncclFloat32 && call.type != ncclUint8)) {
    return ncclInvalidArgument;
  }
  const std::size_t bytes = call.count * (call.type == ncclFloat32 ? 4 : 1);
  if (m.device_of(call.memory) != device || !m.device_range(call.memory, bytes)) return ncclInvalidArgument;
  auto move = std::make_shared<Move>();
  move->peer = comm->peer;
  move->rows.resize(bytes);
  move->polls = library().some_polls();
  ++comm->peer->open;
  const auto now = [make, stream, device, move] { make(stream, device, move); };
  comm->polls = library().some_polls();
  if (comm->polls == 0) {
    now();
    return ncclSuccess;
  }
  comm->waiting = now;
  return ncclInProgress;
}

}  // namespace

ncclResult_t ncclGetVersion(int* version) {
  *version = NCCL_VERSION_CODE;
  return ncclSuccess;
}
const char* ncclGetErrorString(ncclResult_t result) {
  constexpr const char* kTexts[] = {"no error",
                                    "unhandled cuda error",
                                    "unhandled system error",
                                    "internal error",
                                    "invalid argument",
                                    "invalid usage",
                                    "remote process exited or there was a network error",
                                    "NCCL operation in progress"};
  return result >= ncclSuccess && result <= ncclInProgress ? kTexts[result] : "unknown result code";
}
const char* ncclGetLastError(ncclComm_t) {
  return "emulated";
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  return counted("ncclGetUniqueId", [&](Machine&) {
    Id made;
    made.owner = emulation::world_rank();
    made.number = library().ids++;
    *id = {};
    std::memcpy(id->internal, &made, sizeof made);
    return ncclSuccess;
  });
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank, ncclConfig_t* config) {
  return counted("ncclCommInitRankConfig", [&](Machine& m) {
    Id given;
    std::memcpy(&given, id.internal, sizeof given);
    if (comm == nullptr || ranks != 2 || rank < 0 || rank > 1 || given.magic != Id().magic || config == nullptr ||
        config->blocking != 0) {
      return ncclInvalidArgument;
    }
    auto made = std::make_unique<ncclComm>();
    made->peer = std::make_shared<Peer>();
    made->peer->id = given;
    made->peer->rank = rank;
    made->device = emulation::current_device(m);
    *comm = made.get();
    library().comms[*comm] = std::move(made);
    return ncclInProgress;
  });
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t handle, ncclResult_t* result) {
  return counted("ncclCommGetAsyncError", [&](Machine&) {
    ncclComm* const comm = find(handle);
    if (comm == nullptr || result == nullptr) return ncclInvalidArgument;
    *result = poll(*comm);
    return ncclSuccess;
  });
}

ncclResult_t ncclCommFinalize(ncclComm_t handle) {
  return counted("ncclCommFinalize", [&](Machine&) {
    ncclComm* const comm = find(handle);
    if (comm == nullptr || comm->peer->finalizing || !comm->peer->ready || comm->waiting) return ncclInvalidArgument;
    comm->peer->finalizing = true;
    return ncclInProgress;
  });
}

ncclResult_t ncclCommDestroy(ncclComm_t handle) {
  return counted<Kind::kReleases>("ncclCommDestroy", [&](Machine&) {
    ncclComm* const comm = find(handle);
    if (comm == nullptr || !comm->peer->finalizing) return ncclInvalidArgument;
    comm->peer->ended = true;
    library().comms.erase(handle);
    return ncclSuccess;
  });
}

ncclResult_t ncclCommAbort(ncclComm_t handle) {
  Machine& m = emulation::machine();
  while (true) {
    {
      const std::lock_guard lock(m.mutex);
      if (!library().behaviour.hang_abort) break;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return counted<Kind::kReleases>("ncclCommAbort", [&](Machine&) {
    ncclComm* const comm = find(handle);
    if (comm == nullptr) return ncclInvalidArgument;
    comm->peer->ended = true;
    library().comms.erase(handle);
    return ncclSuccess;
  });
}

ncclResult_t ncclCommRegister(ncclComm_t handle, void* memory, std::size_t bytes, void** registration) {
  return counted("ncclCommRegister", [&](Machine& m) {
    ncclComm* const comm = find(handle);
    if (comm == nullptr || registration == nullptr || !m.device_range(memory, bytes)) return ncclInvalidArgument;
    if (library().behaviour.refuse_memory) return ncclSystemError;
    comm->registered.insert(memory);
    *registration = memory;
    return ncclSuccess;
  });
}
ncclResult_t ncclCommDeregister(ncclComm_t handle, void* registration) {
  return counted<Kind::kReleases>("ncclCommDeregister", [&](Machine&) {
    ncclComm* const comm = find(handle);
    return comm != nullptr && comm->registered.erase(registration) == 1 ? ncclSuccess : ncclInvalidArgument;
  });
}

ncclResult_t ncclSend(const void* memory, std::size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return counted("ncclSend", [&](Machine& m) {
    return enqueue(m, {memory, count, type, peer, comm, stream},
                   [&m, memory](std::uint64_t id, int device, const std::shared_ptr<Move>& move) {
                     m.enqueue(id, device, [memory, move] {
                       std::memcpy(move->rows.data(), memory, move->rows.size());
                       return cudaSuccess;
                     });
                     m.streams.enqueue(
                         id, [move] { --move->peer->open; }, {}, [move] { return push(*move); });
                   });
  });
}

ncclResult_t ncclRecv(void* memory, std::size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return counted("ncclRecv", [&](Machine& m) {
    return enqueue(m, {memory, count, type, peer, comm, stream},
                   [&m, memory](std::uint64_t id, int device, const std::shared_ptr<Move>& move) {
                     const auto store = [memory, move] {
                       --move->peer->open;
                       if (!move->peer->ended) std::memcpy(memory, move->rows.data(), move->rows.size());
                       return cudaSuccess;
                     };
                     m.enqueue(id, device, store, {}, -1, [move] { return pull(*move); });
                   });
  });
}

// ---- steering ----
namespace stagecoach::cuda_emulation::nccl {

void behave(const Behaviour& behaviour, std::uint64_t seed) {
  const std::lock_guard lock(machine().mutex);
  library().behaviour = behaviour;
  library().random.seed(seed);
}

void fail_async(std::uint64_t n, int result) {
  const std::lock_guard lock(machine().mutex);
  library().fail_in = n;
  library().fail_with = static_cast<ncclResult_t>(result);
}

void die(bool noticed) {
  const std::lock_guard lock(machine().mutex);
  library().dead = true;
  if (!noticed) return;
  for (const auto& [handle, comm] : library().comms) {
    const std::byte word{};
    if (comm->peer->world >= 0) post(comm->peer->world, comm->peer->tag(Tag::kGone), std::span(&word, 1));
  }
}

void revive() {
  const std::lock_guard lock(machine().mutex);
  library().dead = false;
}

Live live() {
  const std::lock_guard lock(machine().mutex);
  Live live;
  live.communicators = library().comms.size();
  for (const auto& [handle, comm] : library().comms) live.registrations += comm->registered.size();
  return live;
}

}  // namespace stagecoach::cuda_emulation::nccl
