// Mailbox and Transport over MPI, for stages that are ranks of one communicator.
//
// Two private communicators keep tensors and messages apart, so that neither can stand in front of the other. Nothing
// blocks; large messages move inside calls of `done`, `take` and `flushed`, which the loops make between operations.
// All calls come from the thread that initialised MPI. Ranks may be renumbered once, so that they are stages in order;
// for people they keep the launcher's numbers.
#pragma once

#include <chrono>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "runtime/transport.hpp"

namespace stagecoach {

// MPI for one process: initialises it in the constructor and finalises it in the destructor, unless an exception is
// unwinding the stack: finalising waits for other ranks, and they may be waiting for us.
class MpiProcess {
 public:
  MpiProcess(int* argc, char*** argv);
  ~MpiProcess();
  MpiProcess(const MpiProcess&) = delete;
  MpiProcess& operator=(const MpiProcess&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  // From here on the rank that the launcher calls order[r] is rank r. Collective, with the same order everywhere, and
  // before there is any mailbox or transport.
  void renumber(std::span<const int> order);
  int launched_rank(int rank) const;              // as the launcher calls it
  int local_size() const { return local_size_; }  // ranks on this host
  int local_rank() const { return local_rank_; }
  const std::string& host() const { return host_; }
  const std::vector<std::string>& hosts() const;  // by rank

  // From here on a rank that gives no sign of life for so long while others wait in `all_gather` ends their waiting.
  // Rank 0 watches all others, rank 1 watches rank 0.
  void set_silence_limit(double seconds) { silence_limit_s_ = seconds; }
  double silence_limit_s() const { return silence_limit_s_; }
  // A sign of life, cheap enough to call often; waiting gives them by itself.
  void sign() const;

  // Collective. Every rank gives bytes; every rank gets all of them, by rank. Throws TransportError when that takes
  // longer than `limit_s` or when a rank that this one watches is silent; then there is nothing left to do but to end
  // the job.
  std::vector<std::vector<std::byte>> all_gather(std::span<const std::byte> bytes,
                                                 double limit_s = std::numeric_limits<double>::infinity()) const;
  // Ends the whole job with `status`, after telling rank 0 so. Does not return.
  [[noreturn]] void abort(int status) const;
  // On rank 0: whether word of an `abort` comes from another rank within `wait`.
  bool hears_of_abort(std::chrono::milliseconds wait) const;

  // Peer p is world rank first_rank + p.
  std::unique_ptr<Mailbox> mailbox(int first_rank) const;
  // Between this rank and two others, or -1: receives from `previous`, sends to `next`. A pair has one in each
  // direction.
  std::unique_ptr<Transport> transport(int previous, int next) const;

 private:
  struct Communicators;
  struct Watch;
  std::string name_of(std::size_t rank) const;
  void look_for_signs() const;

  int rank_ = 0, size_ = 1, local_size_ = 1, local_rank_ = 0;
  int exceptions_ = 0;
  std::string host_;
  double silence_limit_s_ = std::numeric_limits<double>::infinity();
  std::vector<std::unique_ptr<Communicators>> comms_;  // the last are in use
  std::unique_ptr<Watch> watch_;
};

}  // namespace stagecoach
