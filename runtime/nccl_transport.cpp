#include "runtime/nccl_transport.hpp"

#include <fmt/format.h>
#include <nccl.h>

#include <chrono>
#include <cstring>
#include <future>
#include <map>
#include <memory>
#include <source_location>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/cuda/device_queue.hpp"
#include "kernels/cuda/handles.hpp"

namespace stagecoach {
namespace {

using cuda::DeviceQueue;
using cuda::Event;
using cuda::Stream;
using Clock = std::chrono::steady_clock;

// Blocks of the GPU that one link may take while rows move or are waited for: enough for most of an NVLink, few enough
// to leave the GPU to the operations. NCCL_MAX_CTAS overrides it.
constexpr int kMostBlocks = 4;
constexpr double kCloseLimit = 5.0;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::string text_of(ncclResult_t result, ncclComm_t comm) {
  const char* detail = comm != nullptr ? ncclGetLastError(comm) : nullptr;
  const bool told = detail != nullptr && detail[0] != '\0';
  return fmt::format("NCCL: {}{}{}", ncclGetErrorString(result), told ? ": " : "", told ? detail : "");
}

// Runs `call` on a thread of its own, which is left to itself when that takes longer than `limit_s`: false.
bool ends_within(double limit_s, std::function<void()> call) noexcept {
  try {
    auto ended = std::make_shared<std::promise<void>>();
    std::future<void> future = ended->get_future();
    std::thread([ended, call = std::move(call)] {
      call();
      ended->set_value();
    }).detach();
    return future.wait_for(std::chrono::duration<double>(limit_s)) == std::future_status::ready;
  } catch (...) {
    return false;  // no thread to be had
  }
}

// Events in turn: making them takes longer than using them.
class Events {
 public:
  Event take() {
    if (spare_.empty()) return cuda::make_event();
    Event event = std::move(spare_.back());
    spare_.pop_back();
    return event;
  }
  void give_back(Event event) {
    if (event) spare_.push_back(std::move(event));
  }
  void leave() noexcept {
    for (Event& event : spare_) event.release();
    spare_.clear();
  }

 private:
  std::vector<Event> spare_;
};

bool has_happened(const Event& event) {
  const cudaError_t result = cudaEventQuery(event.get());
  if (result == cudaErrorNotReady) return false;
  cuda::check(result);
  return true;
}

enum class Way : std::uint8_t { kSend, kReceive };

// This rank's end of a link. Operations are made in order, one at a time: NCCL refuses the next while one is in
// progress.
class LinkEnd {
 public:
  LinkEnd(Way way, const NcclLink& link, const NcclOptions& options, const DeviceQueue& queue)
      : way_(way),
        self_(options.self),
        peer_(link.peer),
        timeout_s_(options.timeout_s),
        abort_limit_s_(options.abort_limit_s),
        queue_(queue),
        stream_(cuda::make_stream()) {}
  ~LinkEnd() { close(); }
  LinkEnd(const LinkEnd&) = delete;
  LinkEnd& operator=(const LinkEnd&) = delete;

  void connect(const NcclId& link) {
    ncclUniqueId id;
    static_assert(sizeof id.internal == sizeof link);
    std::memcpy(id.internal, link.data(), sizeof id.internal);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    config.maxCTAs = kMostBlocks;
    require(ncclCommInitRankConfig(&comm_, 2, id, way_ == Way::kSend ? 0 : 1, &config));
  }
  const std::string& peer() const { return peer_; }
  bool connected() { return connected_ = connected_ || quiet(); }
  bool open() const { return comm_ != nullptr && (!operations_.empty() || !failure_.empty()); }

  void start(Transport::Ticket ticket, Tensor tensor) {
    Operation operation;
    operation.tensor = tensor;
    if (way_ == Way::kSend) {  // after what computes the rows; a receive's memory is free
      operation.computed = events_.take();
      cuda::check(cudaEventRecord(operation.computed.get(), queue_.stream));
    }
    operations_.emplace(ticket, std::move(operation));
    advance();
  }
  bool has(Transport::Ticket ticket) const { return operations_.contains(ticket); }

  bool done(Transport::Ticket ticket) {
    advance();
    Operation& operation = operations_.at(ticket);
    if (operation.step != Step::kQueued || !has_happened(operation.ended)) return false;
    quiet();  // rows of a link that broke meanwhile are no rows
    events_.give_back(std::move(operation.computed));
    events_.give_back(std::move(operation.ended));
    operations_.erase(ticket);
    moved_ = Clock::now();
    return true;
  }

  bool wait_on_device(Transport::Ticket ticket) {
    advance();
    const Operation& operation = operations_.at(ticket);
    if (operation.step != Step::kQueued) return false;
    cuda::check(cudaStreamWaitEvent(queue_.stream, operation.ended.get(), 0));
    return true;
  }

  // Without it NCCL copies through buffers of its own.
  void prepare(std::span<std::byte> memory) {
    void* handle = nullptr;
    if (quiet() && ncclCommRegister(comm_, memory.data(), memory.size(), &handle) == ncclSuccess && handle != nullptr) {
      registered_.push_back(handle);
    }
  }

  // Ends what is open; true when nothing of it touches memory any more.
  bool abort() noexcept {
    if (comm_ == nullptr) return true;
    const Clock::time_point start = Clock::now();
    ncclComm_t comm = std::exchange(comm_, nullptr);
    bool ended = ends_within(abort_limit_s_, [comm, device = queue_.device] {
      cudaSetDevice(device);
      ncclCommAbort(comm);
    });
    cudaSetDevice(queue_.device);
    while (ended && cudaStreamQuery(stream_.get()) == cudaErrorNotReady) {
      ended = seconds_since(start) < abort_limit_s_;
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    if (!ended) leave();
    return ended;
  }

 private:
  enum class Step : std::uint8_t { kWaiting, kMade, kQueued };  // kMade: NCCL says that it is in progress
  struct Operation {
    Tensor tensor;
    Event computed;  // sends
    Event ended;     // recorded once kQueued
    Step step = Step::kWaiting;
  };

  [[noreturn]] void fail(const std::string& what) {
    failure_ = way_ == Way::kSend ? fmt::format("link from {} to {}: {}", self_, peer_, what)
                                  : fmt::format("link from {} to {}: {}", peer_, self_, what);
    throw TransportError(failure_);
  }
  // False while in progress.
  bool require(ncclResult_t result) {
    if (result == ncclInProgress) return false;
    if (result != ncclSuccess) fail(text_of(result, comm_));
    return true;
  }
  // Nothing is in progress; throws what NCCL found.
  bool quiet() {
    if (!failure_.empty()) throw TransportError(failure_);
    if (comm_ == nullptr) throw TransportError(fmt::format("the link with {} has been closed", peer_));
    ncclResult_t state = ncclSuccess;
    require(ncclCommGetAsyncError(comm_, &state));
    return require(state);
  }

  void advance() {
    if (!quiet()) return;
    for (auto& [ticket, operation] : operations_) {
      if (operation.step == Step::kQueued) continue;
      if (operation.step == Step::kWaiting && !make(operation)) break;
      operation.ended = events_.take();
      cuda::check(cudaEventRecord(operation.ended.get(), stream_.get()));
      operation.step = Step::kQueued;
    }
    if (way_ == Way::kSend) check_deadline();
  }

  bool make(Operation& operation) {
    const Tensor& t = operation.tensor;
    const bool floats = t.dtype == DType::kFloat32;
    const ncclDataType_t type = floats ? ncclFloat32 : ncclUint8;
    const auto values = static_cast<std::size_t>(floats ? t.rows * t.cols : t.bytes());
    if (operation.computed) cuda::check(cudaStreamWaitEvent(stream_.get(), operation.computed.get(), 0));
    operation.step = Step::kMade;
    return require(way_ == Way::kSend ? ncclSend(t.data, values, type, 1, comm_, stream_.get())
                                      : ncclRecv(t.data, values, type, 0, comm_, stream_.get()));
  }

  // The receiver posts its receive as soon as it has the header, between any two operations: as often as it shows that
  // it lives.
  void check_deadline() {
    if (operations_.empty() || !has_happened(operations_.begin()->second.computed)) {
      moved_ = Clock::now();
      return;
    }
    if (seconds_since(moved_) < timeout_s_) return;
    fail(
        fmt::format("{} rows have been ready for {:.0f} s and were not taken; is the network between them sound? "
                    "(NCCL_SOCKET_IFNAME names the interface, NCCL_DEBUG=INFO tells what NCCL does, --transport mpi "
                    "does without; --timeout sets the limit)",
                    operations_.begin()->second.tensor.rows, timeout_s_));
  }

  // The orderly end, when nothing is open: both ranks come here.
  void close() noexcept {
    if (comm_ == nullptr) return;
    if (connected_ && !open() && finalized()) {
      ncclComm_t comm = std::exchange(comm_, nullptr);
      cudaSetDevice(queue_.device);
      if (!ends_within(abort_limit_s_, [comm, device = queue_.device] {
            cudaSetDevice(device);
            ncclCommDestroy(comm);
          })) {
        leave();
      }
      return;
    }
    abort();
  }
  bool finalized() noexcept {
    for (void* handle : registered_) ncclCommDeregister(comm_, handle);
    registered_.clear();
    const Clock::time_point start = Clock::now();
    ncclResult_t state = ncclCommFinalize(comm_);
    while (state == ncclInProgress && seconds_since(start) < kCloseLimit) {
      std::this_thread::sleep_for(std::chrono::microseconds(100));
      if (ncclCommGetAsyncError(comm_, &state) != ncclSuccess) return false;
    }
    return state == ncclSuccess;
  }

  // NCCL may still use them.
  void leave() noexcept {
    stream_.release();
    events_.leave();
    for (auto& [ticket, operation] : operations_) {
      operation.computed.release();
      operation.ended.release();
    }
  }

  Way way_;
  std::string self_, peer_;
  double timeout_s_, abort_limit_s_;
  const DeviceQueue& queue_;
  Stream stream_;
  Events events_;
  ncclComm_t comm_ = nullptr;
  bool connected_ = false;
  std::string failure_;
  std::map<Transport::Ticket, Operation> operations_;  // in order
  Clock::time_point moved_ = Clock::now();             // when rows went last, or none were ready
  std::vector<void*> registered_;
};

class NcclTransport final : public Transport {
 public:
  NcclTransport(const NcclOptions& options, const DeviceQueue& queue)
      : queue_(queue), waits_on_device_(options.waits_on_device) {
    queue_.enter();
    if (options.previous) previous_ = std::make_unique<LinkEnd>(Way::kReceive, *options.previous, options, queue);
    if (options.next) next_ = std::make_unique<LinkEnd>(Way::kSend, *options.next, options, queue);
    if (previous_) previous_->connect(options.previous->id);
    if (next_) next_->connect(options.next->id);
    wait_until_connected(options);
  }

  Ticket send(Tensor tensor) override { return start(next_, tensor); }
  Ticket receive(Tensor tensor) override { return start(previous_, tensor); }
  bool done(Ticket ticket) override {
    queue_.enter();
    return end_of(ticket).done(ticket);
  }
  bool wait_on_device(Ticket ticket) override {
    queue_.enter();
    return waits_on_device_ && end_of(ticket).wait_on_device(ticket);
  }
  void prepare(std::span<std::byte> memory) override {
    queue_.enter();
    for (LinkEnd* end : ends()) end->prepare(memory);
  }
  bool abandon() noexcept override {
    for (LinkEnd* end : ends()) {
      if (end->open()) end->abort();
    }
    return true;
  }

 private:
  std::vector<LinkEnd*> ends() const {
    std::vector<LinkEnd*> all;
    if (previous_) all.push_back(previous_.get());
    if (next_) all.push_back(next_.get());
    return all;
  }

  void wait_until_connected(const NcclOptions& options) {
    const Clock::time_point start = Clock::now();
    // All in turn: the other end of one may be waited for by who waits for this end of the other.
    for (const LinkEnd* missing = nullptr;; missing = nullptr) {
      for (LinkEnd* end : ends()) {
        if (!end->connected() && missing == nullptr) missing = end;
      }
      if (missing == nullptr) return;
      if (options.check) options.check();
      if (seconds_since(start) > options.timeout_s) {
        throw TransportError(fmt::format(
            "{} could not connect to {} over NCCL within {:.0f} s; is there a network between them that both use? "
            "(NCCL_SOCKET_IFNAME names the interface, NCCL_DEBUG=INFO tells what NCCL does, --transport mpi does "
            "without; --timeout sets the limit)",
            options.self, missing->peer(), options.timeout_s));
      }
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
  }

  Ticket start(const std::unique_ptr<LinkEnd>& end, const Tensor& tensor) {
    if (tensor.stride != tensor.cols || end == nullptr) {
      throw std::invalid_argument(fmt::format("cannot send or receive {} with {} columns and stride {} here",
                                              name_of(tensor.dtype), tensor.cols, tensor.stride));
    }
    queue_.enter();
    end->start(++last_ticket_, tensor);
    return last_ticket_;
  }
  LinkEnd& end_of(Ticket ticket) const {
    for (LinkEnd* end : ends()) {
      if (end->has(ticket)) return *end;
    }
    throw std::invalid_argument(fmt::format("ticket {} is not open", ticket));
  }

  const DeviceQueue& queue_;
  bool waits_on_device_;
  std::unique_ptr<LinkEnd> previous_, next_;
  Ticket last_ticket_ = 0;
};

}  // namespace

std::string nccl_version() {
  int version = 0;
  if (ncclGetVersion(&version) != ncclSuccess) return "NCCL";
  return fmt::format("NCCL {}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

NcclId make_nccl_id() {
  ncclUniqueId id;
  const ncclResult_t result = ncclGetUniqueId(&id);
  if (result != ncclSuccess) throw TransportError(text_of(result, nullptr));
  NcclId bytes;
  std::memcpy(bytes.data(), id.internal, bytes.size());
  return bytes;
}

std::unique_ptr<Transport> make_nccl_transport(const NcclOptions& options, const DeviceQueue& queue) {
  return std::make_unique<NcclTransport>(options, queue);
}

}  // namespace stagecoach
