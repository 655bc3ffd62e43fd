// The ranks of this job: one process alone, or all ranks of an MPI job, behind one face.
//
// Start-up is a few steps that each rank takes by itself, with an agreement of all ranks after each: when any failed,
// all ranks end with the same status and one of them says why. After start-up a failing rank ends the job with `fail`.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "launch/launcher.hpp"
#include "partition/grid.hpp"
#include "partition/placement.hpp"
#include "runtime/mpi_transport.hpp"

namespace stagecoach {

// Exit statuses: see README. The plan does not fit: needed and available bytes, and what would fit.
class FitError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Status 0: all is well.
struct Outcome {
  int status = 0;
  std::string message;
  bool of_peer = false;  // about another rank, which others may know as well
};

// A failure after start-up: thrown on the rank that saw it.
struct RunFailed {
  int status;
  std::string message;
  bool of_peer = false;  // as in Outcome
};

// Thrown on every rank when a step of start-up failed on some; already said. main ends with the status.
struct StartupFailed {
  int status;
};

// The outcome that an exception stands for. To be called in a catch block.
Outcome outcome_of_current_exception();

class World {
 public:
  // Initialises MPI only when a launcher started this process as a rank. Throws UsageError in the first of several
  // tasks that srun started without connecting them, and StartupFailed in the others.
  World(int* argc, char*** argv);
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  int rank() const { return mpi_ ? mpi_->rank() : 0; }
  int size() const { return mpi_ ? mpi_->size() : 1; }
  int local_rank() const { return mpi_ ? mpi_->local_rank() : 0; }
  int local_size() const { return mpi_ ? mpi_->local_size() : 1; }
  MpiProcess* mpi() const { return mpi_.get(); }
  const std::string& host() const { return host_; }
  std::vector<std::string> hosts() const;  // by rank
  // Renumbers the ranks, so that from here on each is the place that it has by these wishes, of rank 0. Where they
  // cannot be, nothing changes. Collective.
  void arrange(const PlacementWish& wish) const;
  // As the launcher numbers it, which is how messages call it.
  int launched_rank(std::int32_t rank) const { return mpi_ ? mpi_->launched_rank(rank) : 0; }
  // "rank 3 (host n7)".
  std::string name_of(std::int32_t rank) const;
  // "rank 3 (replica 1, stage 1, host n7)", "stage 1" where stages are threads of this process.
  std::string name_of(const Grid& grid, std::int32_t place) const;

  // Runs `step` here and on all ranks (collective). When it threw anywhere, the lowest such rank's message is said once
  // and StartupFailed is thrown everywhere.
  void agree(const std::function<void()>& step) const;
  // The end of a run that went well: when all ranks are here. Collective.
  void leave() const;
  // A rank from which others hear nothing for so long while they wait for it in any of these calls ends the job; in a
  // step that may take longer, `alive` is to be called now and then.
  void set_silence_limit(double seconds) const;
  void alive() const;

  // The same for a step in which a rank may fall silent: when not all ranks are through within `limit_s`, and soon
  // after a failure here, this rank ends the job.
  void agree_within(double limit_s, const std::function<void()>& step) const;
  // Every rank's `value`, by rank, on every rank. Collective.
  std::vector<std::vector<std::byte>> from_all(std::span<const std::byte> value) const;
  // Rank 0's `value` on every rank. Collective.
  std::vector<std::byte> from_first(std::span<const std::byte> value) const;
  // The smallest of all ranks' values. Collective.
  std::int64_t minimum(std::int64_t value) const;

  // For main: says the message and, when others would wait for this rank, ends the job. Returns the status otherwise.
  // No message: mpirun is ending the job, which rank 0 says unless a failed rank did. What several ranks see of a peer,
  // the lowest of them says.
  int fail(const RunFailed& failure) const;

 private:
  bool lower_rank_ends_it() const;
  void settle(const std::vector<std::vector<std::byte>>& outcomes) const;
  // Others cannot be waited for: says what happened here, otherwise `why`, and ends the job.
  [[noreturn]] void give_up(const TransportError& why, const Outcome& mine) const;

  std::string ended_by_launcher() const;

  // Does not return.
  [[noreturn]] void end_job(int status) const;

  std::string host_;
  Launcher launcher_;
  bool by_mpirun_ = false;                                    // not srun
  std::thread::id main_thread_ = std::this_thread::get_id();  // MPI's
  std::unique_ptr<MpiProcess> mpi_;
};

}  // namespace stagecoach
