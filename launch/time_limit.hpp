// An end for what may wait for other ranks for ever and cannot be asked in between: the start and the end of MPI.
#pragma once

#include <string>

namespace stagecoach {

// While it lives: after `seconds` the process says `message`, on standard error, and ends with status 1. One at a time;
// uses SIGALRM, and leaves it as it was at the start of the process.
class TimeLimit {
 public:
  TimeLimit(unsigned seconds, std::string message);
  ~TimeLimit();
  TimeLimit(const TimeLimit&) = delete;
  TimeLimit& operator=(const TimeLimit&) = delete;
};

}  // namespace stagecoach
