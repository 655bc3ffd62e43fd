// A batch file for Slurm that runs a run file's job: one task for each stage of each replica, with what its plan needs,
// queued again until the job is done.
//
// The file stands alone: it holds the program's path, and the shell function of launch/slurm/requeue.sh.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace stagecoach {

struct BatchJob {
  std::vector<std::string> command;  // the program with all its arguments
  std::string folder;                // that paths count from
  std::string output;                // the file of results
  std::string title;                 // what the job is, in words
  std::int64_t tasks = 1;
  std::int32_t cpus = 1;           // of each task
  std::int64_t task_bytes = 0;     // of the host's memory
  std::vector<std::string> hosts;  // that the run file names; none: any
  bool gpus = false;               // one for each task
  std::string time, partition;     // empty: what Slurm does without
};

std::string batch_file(const BatchJob& job);

}  // namespace stagecoach
