#include "launch/world.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <optional>
#include <string_view>
#include <system_error>

#include "launch/command_line.hpp"
#include "launch/interrupt.hpp"
#include "launch/log.hpp"
#include "launch/time_limit.hpp"
#include "runtime/output_file.hpp"
#include "runtime/prompts.hpp"
#include "runtime/results.hpp"
#include "runtime/weight_source.hpp"

namespace stagecoach {
namespace {

// mpirun sets the first; srun with PMIx the second.
bool launched_by_mpi() {
  return std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr || std::getenv("PMIX_RANK") != nullptr;
}

// In which another rank's failure, said by that rank, is known to rank 0. mpirun kills after a second.
constexpr std::chrono::milliseconds kEchoTime{100};
// For MPI's start and end. The first takes minutes with very many ranks.
constexpr unsigned kStartSeconds = 300, kStartTurnSeconds = 5, kEndSeconds = 60;
// In which ranks that mpirun ends can still agree that it was nobody's failure, in seconds.
constexpr double kAgreeOnEnd = 0.3;

std::string_view environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string_view() : std::string_view(value);
}

std::string own_host() {
  std::array<char, 256> name = {};
  return ::gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "localhost";
}

// MPI's own start waits for all ranks, and cannot be asked which one is missing. Who gives up first, the lowest that is
// there, ends the job.
TimeLimit start_limit() {
  const int given = std::atoi(std::string(environment("STAGECOACH_START_TIMEOUT")).c_str());
  const unsigned seconds = given > 0 ? static_cast<unsigned>(given) : kStartSeconds;
  const std::string_view by_mpirun = environment("OMPI_COMM_WORLD_RANK");
  const int rank = std::atoi(std::string(by_mpirun.empty() ? environment("PMIX_RANK") : by_mpirun).c_str());
  return TimeLimit(
      seconds + static_cast<unsigned>(std::clamp(rank, 0, 8)) * kStartTurnSeconds,
      fmt::format(
          "rank {} (host {}): MPI has not started within {} s: a rank did not start, is stopped or cannot reach the "
          "others (host names, network interfaces); STAGECOACH_START_TIMEOUT=SECONDS sets the limit",
          rank, own_host(), seconds));
}

// This process is alone, as far as MPI knows. Of several tasks that srun, or the mpirun of another MPI, started each
// would be, do all the work, and write the same files. Only steps of srun have the variable: a batch script has
// SLURM_NTASKS alone.
void refuse_copies() {
  const auto copies = [](const char* of, const char* own) {
    const std::string_view text = environment(of);
    int tasks = 0;
    if (std::from_chars(text.data(), text.data() + text.size(), tasks).ec != std::errc() || tasks < 2) return 0;
    if (environment(own) != "0") throw StartupFailed{2};  // task 0 says it
    return tasks;
  };
  if (const int tasks = copies("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"); tasks > 0) {
    throw UsageError(
        fmt::format("srun started {} tasks that MPI does not connect, so each would do the whole job; start them with "
                    "srun --mpi=pmix, with mpirun inside the allocation, or a single one with srun -n 1",
                    tasks));
  }
  if (const int tasks = copies("PMI_SIZE", "PMI_RANK"); tasks > 0) {
    throw UsageError(
        fmt::format("the mpirun of another MPI started {} processes that this program's MPI does not connect, so each "
                    "would do the whole job; start them with Open MPI's mpirun (mpirun --version)",
                    tasks));
  }
}

std::vector<std::byte> bytes_of(const Outcome& outcome) {
  std::vector<std::byte> bytes(1 + outcome.message.size());
  bytes[0] = static_cast<std::byte>(outcome.status);
  std::memcpy(bytes.data() + 1, outcome.message.data(), outcome.message.size());
  return bytes;
}

}  // namespace

Outcome outcome_of_current_exception() {
  try {
    throw;
  } catch (const UsageError& e) {
    return {2, e.what()};
  } catch (const PlanError& e) {
    return {2, e.what()};
  } catch (const WeightError& e) {
    return {2, e.what()};
  } catch (const PromptError& e) {
    return {2, e.what()};
  } catch (const TokenizerError& e) {
    return {2, e.what()};
  } catch (const OutputPlaceError& e) {
    return {2, e.what()};
  } catch (const FitError& e) {
    return {3, e.what()};
  } catch (const Interrupted& e) {
    return {75, e.what()};
  } catch (const std::bad_alloc&) {
    return {1, "out of memory on the host"};
  } catch (const TransportError& e) {
    return {1, e.what(), true};
  } catch (const std::exception& e) {
    return {1, e.what()};
  }
}

World::~World() {
  if (!mpi_) return;
  const TimeLimit limit(kEndSeconds, fmt::format("{}: MPI did not end within {} s; what was to be done is done",
                                                 name_of(rank()), kEndSeconds));
  mpi_.reset();
}

World::World(int* argc, char*** argv) : host_(own_host()) {
  by_mpirun_ = std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr;  // asked before MPI's start, which sets it as well
  if (launched_by_mpi()) {
    const TimeLimit limit = start_limit();
    mpi_ = std::make_unique<MpiProcess>(argc, argv);
    host_ = mpi_->host();
  }
  if (!by_mpirun_ && size() == 1) refuse_copies();
}

// A launcher sends TERM to all ranks when it was interrupted, and when a rank has died. launch/mpirun knows which.
std::string World::ended_by_launcher() const {
  if (!environment("STAGECOACH_LAUNCHER").empty()) return "";
  return fmt::format("interrupted: {} ends the job with SIGTERM; start the same command again",
                     by_mpirun_ ? "mpirun" : "Slurm");
}

namespace {

void say(const std::string& message) {
  if (!message.empty()) log_error(message);
}

Outcome outcome_of(const std::function<void()>& step) {
  try {
    step();
    return {};
  } catch (...) {
    return outcome_of_current_exception();
  }
}

}  // namespace

std::vector<std::string> World::hosts() const {
  return mpi_ ? mpi_->hosts() : std::vector<std::string>{host_};
}

void World::arrange(const PlacementWish& wish) const {
  if (!mpi_) return;
  std::vector<std::int32_t> order;
  try {
    order = place_ranks(wish);
  } catch (const PlanError&) {  // for whoever knows what comes before it
  }
  const std::vector<std::byte> bytes = from_first(std::as_bytes(std::span(order)));
  order.resize(bytes.size() / sizeof(std::int32_t));
  std::memcpy(order.data(), bytes.data(), bytes.size());
  if (std::ranges::is_sorted(order)) return;  // as they are
  const TimeLimit limit(kEndSeconds, fmt::format("{}: ranks were not renumbered within {} s; are all of them alive?",
                                                 name_of(rank()), kEndSeconds));
  mpi_->renumber(order);
}

std::string World::name_of(std::int32_t rank) const {
  return fmt::format("rank {} (host {})", launched_rank(rank), hosts().at(static_cast<std::size_t>(rank)));
}

std::string World::name_of(const Grid& grid, std::int32_t place) const {
  const std::string replica = grid.replicas > 1 ? fmt::format("replica {}, ", grid.replica(place)) : "";
  const std::string shard = grid.shards > 1 ? fmt::format(", shard {}", grid.shard(place)) : "";
  const std::string stage = fmt::format("{}stage {}{}", replica, grid.stage(place), shard);
  if (size() == 1) return stage;
  return fmt::format("rank {} ({}, host {})", launched_rank(place), stage,
                     mpi_->hosts().at(static_cast<std::size_t>(place)));
}

void World::agree(const std::function<void()>& step) const {
  settle(from_all(bytes_of(outcome_of(step))));
}

void World::leave() const {
  from_all({});
}

void World::set_silence_limit(double seconds) const {
  if (mpi_) mpi_->set_silence_limit(seconds);
}

void World::alive() const {
  if (mpi_ && std::this_thread::get_id() == main_thread_) mpi_->sign();
}

void World::agree_within(double limit_s, const std::function<void()>& step) const {
  if (!mpi_) return agree(step);
  const Outcome mine = outcome_of(step);
  // One after the other, so that one message is said.
  if (mine.status != 0) limit_s = 5.0 + 2.0 * std::min(rank(), 10);
  const bool ended = mine.status != 0 && mine.message.empty();  // by mpirun, which leaves a second
  if (ended) limit_s = kAgreeOnEnd;
  std::vector<std::vector<std::byte>> all;
  try {
    all = mpi_->all_gather(bytes_of(mine), limit_s);
  } catch (const TransportError& e) {
    if (ended) throw StartupFailed{mine.status};  // who made mpirun do so has said why
    give_up(e, mine);
  }
  settle(all);
}

void World::give_up(const TransportError& why, const Outcome& mine) const {
  const bool failed = mine.status != 0;
  log_error(failed ? mine.message : fmt::format("{}: {}", name_of(rank()), why.what()));
  end_job(failed ? mine.status : 1);
}

void World::end_job(int status) const {
  discard_unfinished_files();
  launcher_.end_if_stuck();
  mpi_->abort(status);
}

void World::settle(const std::vector<std::vector<std::byte>>& all) const {
  auto failed = std::ranges::find_if(all, [](const auto& outcome) { return outcome.size() > 1; });
  if (failed == all.end()) {  // nobody has a message; mpirun may end the job all the same
    failed = std::ranges::find_if(all, [](const auto& outcome) { return outcome.at(0) != std::byte{0}; });
  }
  if (failed == all.end()) return;
  if (rank() == 0) {
    const std::string message(reinterpret_cast<const char*>(failed->data()) + 1, failed->size() - 1);
    // A mistake that all ranks see, or one in what only rank 0 reads, needs no rank named.
    const bool everywhere = std::ranges::all_of(all, [&](const auto& other) { return other == *failed; });
    const auto r = static_cast<std::int32_t>(failed - all.begin());
    say(message.empty()        ? ended_by_launcher()
        : everywhere || r == 0 ? message
                               : fmt::format("{}: {}", name_of(r), message));
  }
  throw StartupFailed{static_cast<int>(failed->at(0))};
}

std::vector<std::vector<std::byte>> World::from_all(std::span<const std::byte> value) const {
  if (!mpi_) return {std::vector<std::byte>(value.begin(), value.end())};
  try {
    return mpi_->all_gather(value);
  } catch (const TransportError& e) {
    give_up(e, {});
  }
}

std::vector<std::byte> World::from_first(std::span<const std::byte> value) const {
  return from_all(rank() == 0 ? value : std::span<const std::byte>{}).at(0);
}

std::int64_t World::minimum(std::int64_t value) const {
  for (const std::vector<std::byte>& bytes : from_all(std::as_bytes(std::span(&value, 1)))) {
    std::int64_t other = 0;
    std::memcpy(&other, bytes.data(), sizeof other);
    value = std::min(value, other);
  }
  return value;
}

// Others notice up to a sign_interval later than this rank; meanwhile it gives no signs itself, and must not be taken
// for silent.
bool World::lower_rank_ends_it() const {
  const double turn_s = std::min(1.0, mpi_->silence_limit_s() / 6);
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(turn_s * (1 + std::min(rank(), 8)));
  while (std::chrono::steady_clock::now() < end) {
    if (const std::optional<Interrupt> noted = interrupt(); noted && noted->from_launcher) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return false;
}

int World::fail(const RunFailed& failure) const {
  if (failure.of_peer && rank() > 0 && lower_rank_ends_it()) return failure.status;
  if (failure.message.empty()) {  // mpirun ends the job; if for another rank's failure, then that was said
    if (rank() == 0 && mpi_ && !mpi_->hears_of_abort(kEchoTime)) say(ended_by_launcher());
    return failure.status;
  }
  log_error(failure.message);
  if (size() > 1) end_job(failure.status);
  return failure.status;
}

}  // namespace stagecoach
