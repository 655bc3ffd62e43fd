// Starts the program as a shell would, alone or under mpirun, and keeps what it printed.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <string>
#include <vector>

namespace stagecoach::test {

struct Ended {
  int status = -1;  // exit status; 124 when it had to be stopped after `limit_s`
  std::string out;
  std::string err;
  double seconds = 0.0;
  bool mpirun_stuck = false;  // after its ranks had ended it waited for itself, and was killed; seen of runs without limit_s

  // A fault of Open MPI: mpirun was stuck or crashed after its ranks had ended, so that `status` says nothing of them.
  bool mpirun_broke() const { return mpirun_stuck || says("(PMIx_server_finalize+"); }
  bool has_status(int wanted) const { return status == wanted || mpirun_broke(); }
  // Lines of `err` that are the program's own messages.
  int messages() const;
  bool says(const std::string& text) const { return err.find(text) != std::string::npos; }
};

// `seconds` of a machine of its own, where others keep this one busy: as many times as long as there are tasks for each
// processor (load average of the last minute), at most six times.
double on_this_machine(double seconds);

// `arguments` go through bash: quotes and redirections work. ranks 0: without mpirun. `before`: what the shell
// does first. limit_s 0: none, and the program takes the shell's process id.
Ended run_program(int ranks, const std::string& arguments, int limit_s = 60, const std::string& before = "");

// The same of the program whose GPUs are emulated: one for each process, with one name, unless `machine` says otherwise
// (STAGECOACH_EMULATION: tests/cuda_emulation/machine_state.cpp).
Ended run_emulated(int ranks, const std::string& arguments, int limit_s = 60, const std::string& machine = "");

// Ranks that differ: each runs the bash lines `rank_does`, in which $rank is its number, and the last of which starts
// "$@", `program` (empty: this build's) with its arguments. Under launch/mpirun with `options` in front of -n.
Ended run_each(int ranks, const std::string& rank_does, const std::string& arguments, const std::string& options = "",
               const std::string& program = "");

// Process ids of the ranks under mpirun whose command line contains `tag`, by rank; 0 where there is none.
std::vector<pid_t> ranks_with(const std::string& tag, int ranks);

// The program's processes with this output have ended, or do soon: those of a killed mpirun take a second. Otherwise they
// are listed. An mpirun whose timeout was killed may wait for itself for ever, which says nothing of its ranks.
bool all_gone(const std::string& output);

// A fresh folder, removed with the object.
class ScratchFolder {
 public:
  ScratchFolder();
  ~ScratchFolder();
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

void write_file(const std::string& path, const std::string& text);
std::string read_file(const std::string& path);

// A file system of so many KiB at a new folder, where root may make one.
class SmallDisk {
 public:
  SmallDisk(const std::string& path, int kib);
  ~SmallDisk();
  SmallDisk(const SmallDisk&) = delete;
  SmallDisk& operator=(const SmallDisk&) = delete;
  bool mounted() const { return mounted_; }
  void grow(int kib) const;

 private:
  std::string path_;
  bool mounted_ = false;
};

}  // namespace stagecoach::test
