// What a job has finished so far, durable beside its results: a killed job that is started again goes on from there.
//
// OUTPUT.journal (records: journal_records.hpp) gets every finished sample in the order in which they finish; samples
// that are found there need not be computed again. When the results are complete it shrinks to a note that says so.
//
// One writer: whoever has the journal holds a lock on it, so that a second run waits. Where the file system has no
// locks, or the first run's host is cut off, the second one's journal takes the first one's place, which the first
// notices before it makes anything durable: it ends with OutputError.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "runtime/journal_records.hpp"

namespace stagecoach {

// The journal is of a job that would have other results: which part of its identity differs. Exit status 2.
class JournalMismatch : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class Journal {
 public:
  // Opens the journal of the results at `output`, or begins one. `fresh`: what is there does not count. `waiting` is
  // called several times a second while another run has it, and may throw. Throws JournalMismatch and OutputError.
  Journal(const std::string& output, const JobIdentity& job, bool fresh, const std::function<void()>& waiting);
  // A journal without samples leaves no file behind.
  ~Journal();
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;

  static std::string path_of(const std::string& output) { return output + ".journal"; }

  // The results are there, complete, and the ones that this job would have: what its run said at the end. Looks at the
  // whole file.
  const std::optional<std::string>& complete() const { return complete_; }

  std::int64_t recorded_samples() const { return static_cast<std::int64_t>(entries_.size()); }
  std::int64_t damaged_bytes() const { return damaged_bytes_; }  // that were passed over
  // Samples of prompt `index` that earlier runs finished, by number. Throws OutputError.
  std::vector<Sample> recorded(std::int64_t index) const;

  // Of one thread. Durable with the next `sync`. Throw OutputError.
  void append(const Sample& sample);
  void sync();
  bool unsynced() const { return unsynced_; }
  std::chrono::steady_clock::time_point last_sync() const { return last_sync_; }
  // To be called before the results appear under their name: that this run is still the one to do so.
  void require_mine() const;
  // The results stand under their name.
  void finish(const std::string& last_words);

 private:
  void lock(const std::function<void()>& waiting);
  void read_old(bool fresh);
  void replace(std::span<const std::byte> head);
  std::optional<Completion> look_at_results() const;

  std::string output_, path_;
  JobIdentity job_;
  std::uint64_t key_ = 0;
  int fd_ = -1;
  std::vector<SampleEntry> entries_;
  std::int64_t damaged_bytes_ = 0;
  std::optional<std::string> complete_;
  std::vector<std::byte> buffer_;  // not written yet
  bool unsynced_ = false;
  bool worth_keeping_ = false;
  std::chrono::steady_clock::time_point last_sync_{};
};

}  // namespace stagecoach
