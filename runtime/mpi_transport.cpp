#include "runtime/mpi_transport.hpp"

#include <fmt/format.h>
#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <iterator>
#include <list>
#include <map>
#include <set>
#include <source_location>
#include <thread>
#include <unordered_map>
#include <utility>

#include "runtime/silence.hpp"

namespace stagecoach {
namespace {

void check(int code, const std::source_location& where = std::source_location::current()) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw TransportError(
      fmt::format("MPI: {} (in {})", std::string_view(text, static_cast<std::size_t>(length)), where.function_name()));
}

using Clock = std::chrono::steady_clock;

// Beside the channels, on the communicator of messages.
constexpr int kAbortTag = 100;
constexpr int kSignTag = 101;
constexpr std::chrono::milliseconds kAbortWordTime{50};
constexpr std::chrono::milliseconds kAbandonTime{500};

int int_count(std::int64_t count) {
  if (count > std::numeric_limits<int>::max()) {
    throw TransportError(fmt::format("a message of {} elements exceeds MPI's limit of one call", count));
  }
  return static_cast<int>(count);
}

// Holds until the process ends what MPI may still read or write when a failure ends the job: it moves data in all later
// calls, those that end the job among them, and a peer on this host reads by itself.
template <class T>
void keep(T memory) noexcept {
  static auto& kept = *new std::list<T>;
  kept.push_back(std::move(memory));
}

class MpiMailbox final : public Mailbox {
 public:
  MpiMailbox(MPI_Comm comm, int first_rank) : comm_(comm), first_rank_(first_rank) {}
  ~MpiMailbox() override {
    if (!sending_.empty()) keep(std::move(sending_));
    std::erase_if(receiving_, [](const auto& one) { return one.second.request == MPI_REQUEST_NULL; });
    if (!receiving_.empty()) keep(std::move(receiving_));
  }
  MpiMailbox(const MpiMailbox&) = delete;
  MpiMailbox& operator=(const MpiMailbox&) = delete;

  void post(int peer, Channel channel, std::span<const std::byte> bytes) override {
    Sending& sending = sending_.emplace_back(std::vector<std::byte>(bytes.begin(), bytes.end()), MPI_REQUEST_NULL);
    check(MPI_Isend(sending.bytes.data(), int_count(static_cast<std::int64_t>(bytes.size())), MPI_BYTE,
                    first_rank_ + peer, static_cast<int>(channel), comm_, &sending.request));
  }

  std::optional<std::vector<std::byte>> take(int peer, Channel channel) override {
    Receiving& receiving = receiving_[{peer, channel}];
    if (receiving.request == MPI_REQUEST_NULL && !start(receiving, peer, channel)) return std::nullopt;
    int finished = 0;
    check(MPI_Test(&receiving.request, &finished, MPI_STATUS_IGNORE));
    if (finished == 0) return std::nullopt;
    return std::move(receiving.bytes);
  }

  bool flushed() override {
    for (auto it = sending_.begin(); it != sending_.end();) {
      int finished = 0;
      check(MPI_Test(&it->request, &finished, MPI_STATUS_IGNORE));
      it = finished != 0 ? sending_.erase(it) : std::next(it);
    }
    return sending_.empty();
  }

 private:
  struct Sending {
    std::vector<std::byte> bytes;
    MPI_Request request;
  };
  struct Receiving {
    std::vector<std::byte> bytes;
    MPI_Request request = MPI_REQUEST_NULL;
  };

  bool start(Receiving& receiving, int peer, Channel channel) {
    int found = 0;
    MPI_Message message = MPI_MESSAGE_NULL;
    MPI_Status status;
    check(MPI_Improbe(first_rank_ + peer, static_cast<int>(channel), comm_, &found, &message, &status));
    if (found == 0) return false;
    int bytes = 0;
    check(MPI_Get_count(&status, MPI_BYTE, &bytes));
    receiving.bytes.resize(static_cast<std::size_t>(bytes));
    check(MPI_Imrecv(receiving.bytes.data(), bytes, MPI_BYTE, &message, &receiving.request));
    return true;
  }

  MPI_Comm comm_;
  int first_rank_;
  std::list<Sending> sending_;
  std::map<std::pair<int, Channel>, Receiving> receiving_;
};

class MpiTransport final : public Transport {
 public:
  MpiTransport(MPI_Comm comm, int previous, int next) : comm_(comm), previous_(previous), next_(next) {}

  Ticket send(Tensor tensor) override {
    MPI_Request& request = open(tensor);
    check(MPI_Isend(tensor.data, int_count(tensor.rows * tensor.cols), type_of(tensor), next_, 0, comm_, &request));
    return last_ticket_;
  }
  Ticket receive(Tensor tensor) override {
    MPI_Request& request = open(tensor);
    check(MPI_Irecv(tensor.data, int_count(tensor.rows * tensor.cols), type_of(tensor), previous_, 0, comm_, &request));
    receiving_.insert(last_ticket_);
    return last_ticket_;
  }
  bool done(Ticket ticket) override {
    const auto found = requests_.find(ticket);
    if (found == requests_.end()) throw std::invalid_argument(fmt::format("ticket {} is not open", ticket));
    int finished = 0;
    check(MPI_Test(&found->second, &finished, MPI_STATUS_IGNORE));
    if (finished != 0) {
      requests_.erase(found);
      receiving_.erase(ticket);
    }
    return finished != 0;
  }
  // MPI moves data inside this process's calls, and those that end the job are still to come. What has not begun to
  // arrive is called off, what has is waited for. What is being sent cannot be called off.
  bool abandon() noexcept override {
    for (const Ticket ticket : receiving_) {
      const auto found = requests_.find(ticket);
      if (found != requests_.end()) MPI_Cancel(&found->second);
    }
    const Clock::time_point end = Clock::now() + kAbandonTime;
    for (const Ticket ticket : receiving_) {
      const auto found = requests_.find(ticket);
      int finished = found == requests_.end() ? 1 : 0;
      while (finished == 0 && Clock::now() < end) {
        if (MPI_Test(&found->second, &finished, MPI_STATUS_IGNORE) != MPI_SUCCESS) break;
      }
    }
    receiving_.clear();
    return std::ranges::all_of(requests_, [](auto& open) {
      int finished = 0;
      return MPI_Test(&open.second, &finished, MPI_STATUS_IGNORE) == MPI_SUCCESS && finished != 0;
    });
  }

 private:
  MPI_Request& open(const Tensor& tensor) {
    if (tensor.stride != tensor.cols) {
      throw std::invalid_argument(fmt::format("cannot send {} with {} columns and stride {}", name_of(tensor.dtype),
                                              tensor.cols, tensor.stride));
    }
    return requests_[++last_ticket_] = MPI_REQUEST_NULL;
  }

  static MPI_Datatype type_of(const Tensor& tensor) {
    const std::int64_t bytes = size_of(tensor.dtype);
    return bytes == 4 ? MPI_FLOAT : bytes == 2 ? MPI_UINT16_T : MPI_BYTE;
  }

  MPI_Comm comm_;
  int previous_, next_;
  Ticket last_ticket_ = 0;
  std::unordered_map<Ticket, MPI_Request> requests_;
  std::set<Ticket> receiving_;  // of these
};

}  // namespace

struct MpiProcess::Communicators {
  MPI_Comm all = MPI_COMM_NULL;  // for agreements
  MPI_Comm tensors = MPI_COMM_NULL;
  MPI_Comm messages = MPI_COMM_NULL;

  // Of the ranks of the whole job, by `key`.
  explicit Communicators(int key) {
    check(MPI_Comm_split(MPI_COMM_WORLD, 0, key, &all));
    check(MPI_Comm_dup(all, &tensors));
    check(MPI_Comm_dup(all, &messages));
  }
  void free() {
    for (MPI_Comm* comm : {&all, &tensors, &messages}) MPI_Comm_free(comm);
  }
};

struct MpiProcess::Watch {
  std::vector<int> launched;       // by rank
  std::vector<std::string> hosts;  // by rank
  std::vector<Listening> ranks;
  Clock::time_point next_sign{};
};

MpiProcess::MpiProcess(int* argc, char*** argv)
    : exceptions_(std::uncaught_exceptions()), watch_(std::make_unique<Watch>()) {
  int provided = 0;
  // The pipeline makes all MPI calls from this thread; others (prompts, kernels) make none.
  check(MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided));
  if (provided < MPI_THREAD_FUNNELED) throw TransportError("this MPI does not support threads (MPI_THREAD_FUNNELED)");
  check(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
  check(MPI_Comm_rank(MPI_COMM_WORLD, &rank_));
  check(MPI_Comm_size(MPI_COMM_WORLD, &size_));
  comms_.push_back(std::make_unique<Communicators>(rank_));
  MPI_Comm local = MPI_COMM_NULL;
  check(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &local));
  check(MPI_Comm_size(local, &local_size_));
  check(MPI_Comm_rank(local, &local_rank_));
  check(MPI_Comm_free(&local));
  char name[MPI_MAX_PROCESSOR_NAME] = {};
  int length = 0;
  check(MPI_Get_processor_name(name, &length));
  host_.assign(name, static_cast<std::size_t>(length));
  watch_->ranks.resize(static_cast<std::size_t>(size_));
  for (const std::vector<std::byte>& host : all_gather(std::as_bytes(std::span(host_)))) {
    watch_->launched.push_back(static_cast<int>(watch_->hosts.size()));
    watch_->hosts.emplace_back(reinterpret_cast<const char*>(host.data()), host.size());
  }
}

// The former communicators stay until the end: signs of life may still be on their way in them.
void MpiProcess::renumber(std::span<const int> order) {
  const std::vector<std::string> hosts = watch_->hosts;
  const auto mine = std::ranges::find(order, rank_);
  if (mine == order.end() || order.size() != hosts.size()) throw std::invalid_argument("no order of the ranks");
  rank_ = static_cast<int>(mine - order.begin());
  comms_.push_back(std::make_unique<Communicators>(rank_));
  watch_->launched.assign(order.begin(), order.end());
  for (std::size_t r = 0; r < order.size(); ++r) watch_->hosts[r] = hosts[static_cast<std::size_t>(order[r])];
  std::ranges::fill(watch_->ranks, Listening());
}

int MpiProcess::launched_rank(int rank) const {
  return watch_->launched.at(static_cast<std::size_t>(rank));
}

const std::vector<std::string>& MpiProcess::hosts() const {
  return watch_->hosts;
}

std::string MpiProcess::name_of(std::size_t rank) const {
  return fmt::format("rank {} (host {})", watch_->launched[rank], watch_->hosts[rank]);
}

void MpiProcess::sign() const {
  const Clock::time_point now = Clock::now();
  if (size_ == 1 || now < watch_->next_sign) return;
  watch_->next_sign = now + sign_interval(silence_limit_s_);
  MPI_Request request = MPI_REQUEST_NULL;
  check(MPI_Isend(nullptr, 0, MPI_BYTE, rank_ == 0 ? 1 : 0, kSignTag, comms_.back()->messages, &request));
  check(MPI_Request_free(&request));
}

void MpiProcess::look_for_signs() const {
  if (rank_ > 1) return;
  int found = 0;
  MPI_Status status;
  for (;;) {
    check(MPI_Iprobe(MPI_ANY_SOURCE, kSignTag, comms_.back()->messages, &found, &status));
    if (found == 0) break;
    check(MPI_Recv(nullptr, 0, MPI_BYTE, status.MPI_SOURCE, kSignTag, comms_.back()->messages, MPI_STATUS_IGNORE));
    watch_->ranks[static_cast<std::size_t>(status.MPI_SOURCE)].heard();
  }
}

MpiProcess::~MpiProcess() {
  if (std::uncaught_exceptions() > exceptions_) return;
  for (const std::unique_ptr<Communicators>& comms : comms_) comms->free();
  MPI_Finalize();
}

std::vector<std::vector<std::byte>> MpiProcess::all_gather(std::span<const std::byte> bytes, double limit_s) const {
  const Clock::time_point start = Clock::now();
  const auto [watched, watched_end] =
      rank_ == 0 ? std::pair(1, size_) : std::pair(0, rank_ == 1 ? 1 : 0);  // that this one watches
  for (int r = watched; r < watched_end; ++r)
    watch_->ranks[static_cast<std::size_t>(r)].heard();  // nobody had to say anything before
  const auto watch = [&] {
    sign();
    look_for_signs();
    if (std::chrono::duration<double>(Clock::now() - start).count() > limit_s)
      throw TransportError("waited in vain for all other ranks");
    for (int r = watched; r < watched_end; ++r) {
      const auto i = static_cast<std::size_t>(r);
      if (!watch_->ranks[i].too_long(silence_limit_s_)) continue;
      throw TransportError(fmt::format(
          "heard nothing from {} for {:.0f} s while all ranks had to agree; is it alive? (--timeout sets the "
          "limit)",
          name_of(i), silence_limit_s_));
    }
  };
  // Non-blocking collectives polled with short sleeps: ranks that wait for a slow one leave it the core.
  const auto wait = [&](MPI_Request request) {
    int finished = 0;
    check(MPI_Test(&request, &finished, MPI_STATUS_IGNORE));
    while (finished == 0) {
      watch();
      std::this_thread::sleep_for(std::chrono::microseconds(100));
      check(MPI_Test(&request, &finished, MPI_STATUS_IGNORE));
    }
  };
  struct Places {
    int mine = 0, total = 0;
    std::vector<int> counts, offsets;
    std::vector<std::byte> own, all;
  };
  const auto ranks = static_cast<std::size_t>(size_);
  auto places = std::make_unique<Places>();
  Places& p = *places;
  p.mine = int_count(static_cast<std::int64_t>(bytes.size()));
  p.own.assign(bytes.begin(), bytes.end());
  p.counts.resize(ranks);
  p.offsets.resize(ranks);
  try {
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Iallgather(&p.mine, 1, MPI_INT, p.counts.data(), 1, MPI_INT, comms_.back()->all, &request));
    wait(request);
    for (std::size_t r = 0; r < ranks; ++r) {
      p.offsets[r] = p.total;
      p.total += p.counts[r];
    }
    p.all.resize(static_cast<std::size_t>(p.total));
    check(MPI_Iallgatherv(p.own.data(), p.mine, MPI_BYTE, p.all.data(), p.counts.data(), p.offsets.data(), MPI_BYTE,
                          comms_.back()->all, &request));
    wait(request);
  } catch (...) {
    keep(std::move(places));
    throw;
  }
  std::vector<std::vector<std::byte>> result;
  for (std::size_t r = 0; r < ranks; ++r) {
    const auto first = p.all.begin() + p.offsets[r];
    result.emplace_back(first, first + p.counts[r]);
  }
  return result;
}

void MpiProcess::abort(int status) const {
  if (rank_ != 0) {  // best effort: MPI itself may be what failed, and rank 0 may be gone
    const auto end = std::chrono::steady_clock::now() + kAbortWordTime;
    MPI_Request request = MPI_REQUEST_NULL;
    int finished =
        MPI_Isend(nullptr, 0, MPI_BYTE, 0, kAbortTag, comms_.back()->messages, &request) == MPI_SUCCESS ? 0 : 1;
    while (finished == 0 && std::chrono::steady_clock::now() < end) {
      if (MPI_Test(&request, &finished, MPI_STATUS_IGNORE) != MPI_SUCCESS) break;
    }
  }
  MPI_Abort(MPI_COMM_WORLD, status);
  std::_Exit(status);
}

bool MpiProcess::hears_of_abort(std::chrono::milliseconds wait) const {
  const auto end = std::chrono::steady_clock::now() + wait;
  int found = 0;
  do {
    check(MPI_Iprobe(MPI_ANY_SOURCE, kAbortTag, comms_.back()->messages, &found, MPI_STATUS_IGNORE));
    if (found != 0) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

std::unique_ptr<Mailbox> MpiProcess::mailbox(int first_rank) const {
  return std::make_unique<MpiMailbox>(comms_.back()->messages, first_rank);
}
std::unique_ptr<Transport> MpiProcess::transport(int previous, int next) const {
  return std::make_unique<MpiTransport>(comms_.back()->tensors, previous, next);
}

}  // namespace stagecoach
