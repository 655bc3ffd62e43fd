// What happens to a pipeline over NCCL when a rank dies or falls silent at any step, when a call fails, when NCCL finds
// an error by itself or does not return: every rank's loop ends, with an error that names who is to blame. Usage:
// mpirun -n N nccl_faults_test [rounds] [seed], N at least 2.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <random>
#include <string>
#include <thread>

#include "tests/cuda/cuda_backends.hpp"
#include "tests/cuda/nccl_links.hpp"
#include "tests/cuda_emulation/emulation.hpp"
#include "tests/cuda_emulation/host_api.hpp"
#include "tests/cuda_emulation/nccl_api.hpp"
#include "tests/cuda_emulation/nccl_emulation.hpp"
#include "tests/mpi/layout_rounds.hpp"
#include "tests/rounds.hpp"

using namespace stagecoach;
using namespace stagecoach::test;
namespace emulation = stagecoach::cuda_emulation;

namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr double kSilence = 3.0;
#else
constexpr double kSilence = 1.0;
#endif
constexpr double kLong = 100.0;  // where nobody should fall silent

struct Died {};  // the victim's end

// What goes wrong, on one rank.
struct Fault {
  enum class Kind { kNone, kSilent, kNoticed, kStuckAbort, kCall, kAsync, kDropWaits } kind = Kind::kNone;
  int victim = 0;
  std::uint64_t step = 0;  // of the victim's calls of its mailbox and transport, or of the device's and NCCL's
};

// For threads that were left to themselves.
void wait_for_communicators(std::size_t at_most) {
  for (int i = 0; i < 2000 && emulation::nccl::live().communicators > at_most; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

// Counts what a rank asks of its mailbox and its transport, and dies at one of these calls.
class Steps {
 public:
  Steps(const Fault& fault, bool victim) : fault_(fault), victim_(victim) {}
  void next() {
    ++count_;
    const bool dies = fault_.kind == Fault::Kind::kSilent || fault_.kind == Fault::Kind::kNoticed ||
                      fault_.kind == Fault::Kind::kStuckAbort;
    if (!victim_ || !dies || count_ != fault_.step) return;
    emulation::nccl::die(fault_.kind == Fault::Kind::kNoticed);
    throw Died();
  }
  const Fault& fault() const { return fault_; }
  std::uint64_t count() const { return count_; }

 private:
  Fault fault_;
  bool victim_;
  std::uint64_t count_ = 0;
};

// Messages of earlier scenarios, which nobody took, are passed over.
class ScenarioMailbox final : public Mailbox {
 public:
  ScenarioMailbox(std::unique_ptr<Mailbox> inner, std::uint32_t scenario, Steps& steps)
      : inner_(std::move(inner)), scenario_(scenario), steps_(steps) {}
  void post(int peer, Channel channel, std::span<const std::byte> bytes) override {
    steps_.next();
    std::vector<std::byte> marked(sizeof scenario_ + bytes.size());
    std::memcpy(marked.data(), &scenario_, sizeof scenario_);
    std::ranges::copy(bytes, marked.begin() + sizeof scenario_);
    inner_->post(peer, channel, marked);
  }
  std::optional<std::vector<std::byte>> take(int peer, Channel channel) override {
    steps_.next();
    while (auto marked = inner_->take(peer, channel)) {
      std::uint32_t scenario = 0;
      std::memcpy(&scenario, marked->data(), sizeof scenario);
      if (scenario == scenario_) return std::vector(marked->begin() + sizeof scenario, marked->end());
    }
    return std::nullopt;
  }
  bool flushed() override { return inner_->flushed(); }

 private:
  std::unique_ptr<Mailbox> inner_;
  std::uint32_t scenario_;
  Steps& steps_;
};

class SteppedTransport final : public Transport {
 public:
  SteppedTransport(std::unique_ptr<Transport> inner, Steps& steps) : inner_(std::move(inner)), steps_(steps) {}
  Ticket send(Tensor tensor) override {
    steps_.next();
    return inner_->send(tensor);
  }
  Ticket receive(Tensor tensor) override {
    steps_.next();
    return inner_->receive(tensor);
  }
  bool done(Ticket ticket) override {
    steps_.next();
    return inner_->done(ticket);
  }
  bool wait_on_device(Ticket ticket) override {
    steps_.next();
    return inner_->wait_on_device(ticket);
  }
  void prepare(std::span<std::byte> memory) override { inner_->prepare(memory); }
  bool abandon() noexcept override {
    const bool free = inner_->abandon();
    if (steps_.fault().kind != Fault::Kind::kStuckAbort) return free;
    // That came back although NCCL did not. Now NCCL does, so that the backend can be destroyed.
    emulation::nccl::behave({});
    wait_for_communicators(1);  // one may have had nothing open
    return free;
  }

 private:
  std::unique_ptr<Transport> inner_;
  Steps& steps_;
};

Job small_job(std::int32_t blocks) {
  Job job;
  job.model = fmt::format(
      "synthetic:gpt2,n_layer={},n_head=2,n_embd=16,n_positions=64,vocab_size=40,dtype=float32,seed=5", blocks);
  for (const std::int32_t length : {30, 3}) {
    Request request;
    request.index = static_cast<std::int64_t>(job.requests.size());
    for (std::int32_t t = 0; t < length; ++t) request.tokens.push_back((7 * t + length) % 40);
    request.max_new_tokens = 3;
    request.ignore_eos = true;
    request.logprobs = true;
    job.requests.push_back(std::move(request));
  }
  return job;
}

// How a scenario ended for one rank.
struct Ending {
  std::string message;  // empty: well
  std::uint64_t steps = 0, calls = 0;
  double seconds = 0.0;
};

class Scenarios {
 public:
  explicit Scenarios(const MpiProcess& process) : process_(process), stages_(process.size()) {
    job_ = small_job(stages_);
    layout_.chunk_tokens = 12;
    layout_.in_flight = 3;
    layout_.slots = 2;
    layout_.backend = ungraphed_cuda_backend;  // a call that fails while a graph is recorded is nobody's failure
    if (process.rank() == 0) expected_ = run_loopback(job_, layout_of(1));
  }

  // Endings of all ranks. Collective.
  std::vector<Ending> run(const Fault& fault) {
    emulation::reset({.devices = 1});
    emulation::nccl::revive();
    emulation::nccl::behave({.hang_abort = false}, random_());
    ++scenario_;
    const bool victim = process_.rank() == fault.victim;
    Steps steps(fault, victim);
    Ending mine;
    const auto start = std::chrono::steady_clock::now();
    try {
      Layout layout = layout_of(stages_);
      layout.timeout_s = patient(fault) ? kLong : kSilence;
      const std::vector<Sample> samples = run_ranks(job_, layout, process_, links(fault, steps, layout.timeout_s));
      if (process_.rank() == 0) mine.message = difference(expected_, samples);
    } catch (const Died&) {
      mine.message = "died";
    } catch (const TransportError& e) {
      mine.message = fmt::format("transport: {}", e.what());
    } catch (const DeviceError& e) {
      mine.message = fmt::format("device: {}", e.what());
    } catch (const std::exception& e) {
      mine.message = fmt::format("other: {}", e.what());
    }
    mine.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    mine.steps = steps.count();
    mine.calls = emulation::calls() - calls_before_;
    released_ = emulation::failed_call();
    emulation::fail_call(0, 0);
    emulation::nccl::fail_async(0, 0);
    emulation::mutate({});
    wait_for_communicators(0);
    if (emulation::nccl::live() != emulation::nccl::Live{}) mine.message += " (communicators are left)";
    // What an abort that does not return may still use is left alone.
    const bool stuck = fault.kind == Fault::Kind::kStuckAbort;
    if (!stuck && emulation::live() != emulation::Live{}) mine.message += " (device objects are left)";
    return gather(mine);
  }
  // The call that kCall made fail, here.
  const std::string& failed_call() const { return released_; }

 private:
  static bool patient(const Fault& fault) {
    return fault.kind == Fault::Kind::kNone || fault.kind == Fault::Kind::kDropWaits;
  }

  Layout layout_of(std::int32_t stages) const {
    Layout layout = layout_;
    for (std::int32_t s = 0; s < stages; ++s) {
      layout.stages.push_back({s * stages_ / stages, (s + 1) * stages_ / stages - 1});
    }
    return layout;
  }

  RankLinks links(const Fault& fault, Steps& steps, double timeout_s) {
    RankLinks links;
    links.mailbox = [this, &steps] { return std::make_unique<ScenarioMailbox>(process_.mailbox(0), scenario_, steps); };
    links.transport = [this, &fault, &steps, timeout_s](Backend& backend) -> std::unique_ptr<Transport> {
      NcclOptions options = nccl_options(process_, stages_, nccl_ids(process_));  // all ranks have come so far
      options.timeout_s = timeout_s;
      options.abort_limit_s = fault.kind == Fault::Kind::kStuckAbort ? 0.2 : 20.0;
      begin(fault);
      return std::make_unique<SteppedTransport>(make_nccl_transport(options, device_queue(backend)), steps);
    };
    return links;
  }
  void begin(const Fault& fault) {
    calls_before_ = emulation::calls();
    if (fault.kind == Fault::Kind::kStuckAbort) emulation::nccl::behave({.hang_abort = true});
    if (process_.rank() != fault.victim) return;
    if (fault.kind == Fault::Kind::kCall) emulation::fail_call(fault.step, cudaErrorUnknown);
    if (fault.kind == Fault::Kind::kAsync) emulation::nccl::fail_async(fault.step, ncclSystemError);
    if (fault.kind == Fault::Kind::kDropWaits) emulation::mutate({.drop_waits = -1});
  }

  std::vector<Ending> gather(const Ending& mine) const {
    const std::string text = fmt::format("{} {} {} {}", mine.steps, mine.calls, mine.seconds, mine.message);
    std::vector<Ending> endings;
    for (const std::vector<std::byte>& bytes : process_.all_gather(std::as_bytes(std::span(text)))) {
      const std::string one(reinterpret_cast<const char*>(bytes.data()), bytes.size());
      Ending& ending = endings.emplace_back();
      int used = 0;
      unsigned long long steps = 0, calls = 0;
      std::sscanf(one.c_str(), "%llu %llu %lf %n", &steps, &calls, &ending.seconds, &used);
      ending.steps = steps;
      ending.calls = calls;
      ending.message = one.substr(static_cast<std::size_t>(used));
    }
    return endings;
  }

  const MpiProcess& process_;
  std::int32_t stages_;
  Job job_;
  Layout layout_;
  std::vector<Sample> expected_;
  std::uint32_t scenario_ = 0;
  std::uint64_t calls_before_ = 0;
  std::string released_;
  std::mt19937_64 random_{std::random_device{}()};
};

bool names_peer(const std::string& message, int peer) {
  return message.find(fmt::format("stage {} ", peer)) != std::string::npos ||
         message.find(fmt::format("rank {}", peer)) != std::string::npos;
}

// What is wrong with how a fault ended; empty when nothing is.
std::string complaint(const Fault& fault, const std::vector<Ending>& endings, bool releases) {
  bool named = false;
  const bool all_well = std::ranges::all_of(endings, [](const Ending& e) { return e.message.empty(); });
  for (std::size_t rank = 0; rank < endings.size(); ++rank) {
    const std::string& message = endings[rank].message;
    if (message.find("are left)") != std::string::npos) return "something is left";
    if (message.starts_with("other: ")) return "another error";
    if (endings[rank].seconds > 12 * kSilence + 10) return "took too long";
    if (static_cast<int>(rank) == fault.victim) continue;
    named = named || (message.starts_with("transport: ") && names_peer(message, fault.victim));
  }
  switch (fault.kind) {
    case Fault::Kind::kNone:
      return all_well ? "" : "should have gone well";
    case Fault::Kind::kDropWaits:
      return all_well ? "should have been noticed" : "";
    case Fault::Kind::kCall:  // a release may fail without a word: the work is done
      if (all_well) return releases ? "" : "the failure was ignored";
      break;
    case Fault::Kind::kAsync:
      if (all_well) return "the error was ignored";
      break;
    default:
      break;
  }
  return named ? "" : "nobody named the victim";
}

class Test {
 public:
  Test(const MpiProcess& process, std::uint64_t seed) : process_(process), scenarios_(process), random_(seed) {}

  int run(int rounds) {
    const std::vector<Ending> clean = attempt({});
    attempt({Fault::Kind::kDropWaits, 0, 0});
    constexpr std::array kKinds{Fault::Kind::kSilent, Fault::Kind::kNoticed, Fault::Kind::kCall, Fault::Kind::kAsync,
                                Fault::Kind::kStuckAbort};
    for (int round = 0; round < rounds; ++round) {
      Fault fault;
      fault.kind = kKinds[static_cast<std::size_t>(round) % kKinds.size()];
      fault.victim = static_cast<int>(draw(random_, 0, process_.size() - 1));
      const Ending& usual = clean[static_cast<std::size_t>(fault.victim)];
      // How many calls waiting makes differs from run to run; the last ones may not come at all.
      const std::uint64_t within = fault.kind == Fault::Kind::kCall    ? std::min<std::uint64_t>(usual.calls, 500)
                                   : fault.kind == Fault::Kind::kAsync ? 40
                                                                       : std::min<std::uint64_t>(usual.steps, 250);
      fault.step = static_cast<std::uint64_t>(draw(random_, 1, static_cast<std::int64_t>(within)));
      attempt(fault);
    }
    if (process_.rank() == 0) {
      fmt::print("{} scenarios over {} ranks, {} failures; {} came too late\n", count_, process_.size(), failures_,
                 late_);
    }
    return failures_ == 0 && late_ <= rounds / 2 ? 0 : 1;
  }

 private:
  std::vector<Ending> attempt(const Fault& fault) {
    const std::vector<Ending> endings = scenarios_.run(fault);
    ++count_;
    const std::string& call = scenarios_.failed_call();
    const bool may_pass = call.empty() || call.find("Free") != std::string::npos ||
                          call.find("Destroy") != std::string::npos || call.find("Abort") != std::string::npos ||
                          call.find("Finalize") != std::string::npos || call.find("egister") != std::string::npos ||
                          call == "cudaSetDevice" || call == "ncclCommGetAsyncError" ||
                          call.find("Synchronize") != std::string::npos;
    // The victim knows which call it was.
    const std::byte mine{may_pass};
    const auto all = process_.all_gather(std::span(&mine, 1));
    const bool releases = all[static_cast<std::size_t>(fault.victim)].at(0) != std::byte{0};
    std::string wrong = complaint(fault, endings, releases);
    // Who dies when all others have ended, which they do only once they were told to, leaves nobody to name it.
    bool others_well = true;
    for (std::size_t r = 0; r < endings.size(); ++r) {
      others_well = others_well && (static_cast<int>(r) == fault.victim || endings[r].message.empty());
    }
    const std::string& victims = endings[static_cast<std::size_t>(fault.victim)].message;
    const bool dies = fault.kind == Fault::Kind::kSilent || fault.kind == Fault::Kind::kNoticed ||
                      fault.kind == Fault::Kind::kStuckAbort;
    if (dies && others_well && (victims.empty() || victims == "died")) {
      ++late_;
      wrong.clear();
    }
    if (!wrong.empty()) ++failures_;
    if (process_.rank() == 0 && (!wrong.empty() || std::getenv("STAGECOACH_SHOW") != nullptr)) {
      fmt::print(stderr, "fault {} on rank {} at {}: {}\n", static_cast<int>(fault.kind), fault.victim, fault.step,
                 wrong.empty() ? "fine" : wrong);
      for (std::size_t rank = 0; rank < endings.size(); ++rank) {
        fmt::print(stderr, "  rank {}, {:.1f} s, {} steps, {} calls: {}\n", rank, endings[rank].seconds,
                   endings[rank].steps, endings[rank].calls, endings[rank].message);
      }
    }
    return endings;
  }

  const MpiProcess& process_;
  Scenarios scenarios_;
  Random random_;
  int count_ = 0, failures_ = 0, late_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  const MpiProcess process(&argc, &argv);
  // On the one emulated device that each process has, as different hosts.
  setenv("NCCL_HOSTID", fmt::format("rank{}", process.rank()).c_str(), 1);
  const bool all = slow_tests();
  const int count = argc > 1 ? std::atoi(argv[1]) : all ? 300 : 10;
  const std::uint64_t given = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : std::random_device{}();
  try {
    return Test(process, shared(process, given)).run(count);
  } catch (const std::exception& e) {
    fmt::print(stderr, "rank {}: {}\n", process.rank(), e.what());
    process.abort(1);
  }
}
