// INT, TERM and USR1 as a wish to end in an orderly way: no half-written file stays, status 75.
//
// Until `catch_interrupts` they end the process as usual: there is nothing to tidy up yet. From then on the first one
// leaves a note, and whoever loads, converts or runs asks for it between two operations. A second signal half a second
// later, or no end within a few seconds, ends the process at once. Signal handlers belong to the process, so the note
// is a global variable.
#pragma once

#include <optional>
#include <stdexcept>

namespace stagecoach {

// Status 75. An empty message: whoever ended the job has said why.
class Interrupted : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Interrupt {
  int signal = 0;
  // Sent by mpirun, so every rank has it and rank 0 acts on it.
  bool from_launcher = false;
  double seconds_ago = 0.0;

  // There is a little time to finish what is under way. Not when mpirun ends the job, which kills after a second.
  bool leaves_time() const;
};

// May be called several times. `under_launcher`: this process is a rank that mpirun or srun started.
void catch_interrupts(bool under_launcher);
std::optional<Interrupt> interrupt();
void throw_interrupted(const Interrupt& interrupt);
void throw_if_interrupted();

}  // namespace stagecoach
