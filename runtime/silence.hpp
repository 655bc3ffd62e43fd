// When the silence of another rank is too long.
#pragma once

#include <algorithm>
#include <chrono>

namespace stagecoach {

// How often a rank gives signs of life to others, which give it up after `limit_s` of silence. Of several that notice a
// silent rank one may notice so much later than another, which must be less than their turns to say so are apart
// (World::lower_rank_ends_it), by what mpirun takes to tell that the job ends.
inline std::chrono::steady_clock::duration sign_interval(double limit_s) {
  return std::chrono::duration_cast<std::chrono::steady_clock::duration>(
      std::chrono::duration<double>(std::min(0.5, limit_s / 16)));
}

// When a peer was heard last, not counting time in which nobody listened: this process computed, or was itself stopped,
// as Slurm stops the ranks of a job that it suspends, and lets them go on one after the other.
class Listening {
 public:
  using Clock = std::chrono::steady_clock;
  void heard() { since_ = Clock::now(); }
  // To be called with every look for messages, after those that were there. True when it is silent for more than
  // limit_s.
  bool too_long(double limit_s) {
    const Clock::time_point now = Clock::now();
    const std::chrono::duration<double> unheeded = now - last_look_;
    last_look_ = now;
    if (unheeded.count() > limit_s / 4) since_ = now;  // what came meanwhile may not be through yet
    return std::chrono::duration<double>(now - since_).count() > limit_s;
  }

 private:
  Clock::time_point since_ = Clock::now(), last_look_ = since_;
};

}  // namespace stagecoach
