// The mpirun that started this rank, as far as it can be told apart: on the same host, above it among the processes.
//
// mpirun asked to end a job waits for its daemons on all hosts, and of a host that it cannot reach any more it does not
// hear for minutes. A rank that ends the job sees to it that mpirun ends as well.
#pragma once

namespace stagecoach {

class Launcher {
 public:
  // Finds it now: a parent that ends is nobody's parent later.
  Launcher();
  ~Launcher();
  Launcher(const Launcher&) = delete;
  Launcher& operator=(const Launcher&) = delete;

  // To be called before the job is ended: when mpirun is still there in ten seconds, it is killed (told to end at once,
  // it crashes). By a process of its own, which outlives this one; does not wait.
  void end_if_stuck() const;

 private:
  int handle_ = -1;  // a pidfd: never another process that got the number
};

}  // namespace stagecoach
