#include "launch/world.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "launch/command_line.hpp"
#include "launch/interrupt.hpp"
#include "launch/log.hpp"
#include "runtime/prompts.hpp"
#include "runtime/weight_source.hpp"

namespace stagecoach {
namespace {

// mpirun sets the first; srun with PMIx the second.
bool launched_by_mpi() {
  return std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr || std::getenv("PMIX_RANK") != nullptr;
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
  } catch (const FitError& e) {
    return {3, e.what()};
  } catch (const Interrupted& e) {
    return {75, e.what()};
  } catch (const std::bad_alloc&) {
    return {1, "out of memory on the host"};
  } catch (const std::exception& e) {
    return {1, e.what()};
  }
}

World::World(int* argc, char*** argv) {
  if (launched_by_mpi()) mpi_ = std::make_unique<MpiProcess>(argc, argv);
}

void World::agree(const std::function<void()>& step) const {
  Outcome mine;
  try {
    step();
  } catch (...) {
    mine = outcome_of_current_exception();
  }
  const std::vector<std::vector<std::byte>> all = from_all(bytes_of(mine));
  for (std::size_t r = 0; r < all.size(); ++r) {
    const int status = static_cast<int>(all[r].at(0));
    if (status == 0) continue;
    if (rank() == 0 && all[r].size() > 1) {
      const std::string message(reinterpret_cast<const char*>(all[r].data()) + 1, all[r].size() - 1);
      // A mistake that all ranks see, or one in what only rank 0 reads, needs no rank named.
      const bool everywhere = std::ranges::all_of(all, [&](const auto& other) { return other == all[r]; });
      log_error(everywhere || r == 0 ? message : fmt::format("rank {}: {}", r, message));
    }
    throw StartupFailed{status};
  }
}

std::vector<std::vector<std::byte>> World::from_all(std::span<const std::byte> value) const {
  if (mpi_) return mpi_->all_gather(value);
  return {std::vector<std::byte>(value.begin(), value.end())};
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

int World::fail(const RunFailed& failure) const {
  if (failure.message.empty()) return failure.status;  // the job is being ended, and that was said
  log_error(failure.message);
  if (size() > 1) mpi_->abort(failure.status);
  return failure.status;
}

}  // namespace stagecoach
