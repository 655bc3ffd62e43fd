// What people meet when they first run on several hosts: each once, as they would, with one clear line and the right
// status.
#include <doctest/doctest.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "tests/program/mistakes.hpp"
#include "tests/program/run_program.hpp"

using namespace stagecoach::test;

namespace {

void expect_line(const Ended& ended, int status, const std::string& text, double seconds = 15) {
  INFO(ended.err);
  CHECK(ended.status == status);
  CHECK(ended.messages() == 1);
  CHECK(ended.says(text));
  CHECK(ended.seconds < on_this_machine(seconds));
}

bool works(const std::string& command) {
  return std::system(("(" + command + ") > /dev/null 2>&1").c_str()) == 0;
}

const std::string kGenerate = "generate --device cpu --prompt x --max-new-tokens 2 --threads 1 --model ";

}  // namespace

TEST_CASE("too few or too many ranks for the run file") {
  const ScratchFolder folder;
  const std::string arguments =
      "bench --model " + kTiny + " --prompt-tokens 4 --new-tokens 2 --config " + (folder / "run.yaml");
  const std::string two[] = {"pipeline: {stages: 2}\n", "pipeline: {stages: [{blocks: [0, 0]}, {blocks: [1, 2]}]}\n"};
  for (const std::string& text : two) {
    write_file(folder / "run.yaml", text);
    expect_line(run_program(3, arguments), 2, "3 ranks but 2 stages; start 2 ranks (mpirun -n 2)");
  }
  write_file(folder / "run.yaml", "pipeline: {stages: 3}\n");
  expect_line(run_program(2, arguments), 2, "2 ranks but 3 stages; start 3 ranks (mpirun -n 3)");
  write_file(folder / "run.yaml", "prompt: x\npipeline: {stages: 1, replicas: 3}\n");
  expect_line(run_program(2, "generate --model " + kDemo + " --config " + (folder / "run.yaml")), 2,
              "2 ranks but 3 replicas of 1 stages; start 3 ranks (mpirun -n 3)");
}

TEST_CASE("a model that one host does not have") {
  const ScratchFolder folder;
  std::filesystem::create_directory(folder / "model");
  std::filesystem::copy_file(kDemo + "/model.h5", folder / "model/model.h5");
  const std::string there = folder / "model";
  CHECK(run_each(3, "", kGenerate + there).status == 0);
  // A relative path, and another folder to start from.
  const std::string where = "cd " + folder.path().string() + "\nif [ $rank = 2 ]; then cd /; fi";
  expect_line(run_each(3, where, kGenerate + "model"), 2, "rank 2");
  CHECK(run_each(3, where, kGenerate + "model").says("model"));
  if (!works("unshare -m true")) {
    MESSAGE("skipped: a path that one rank does not see, for lack of rights to make mount namespaces");
    return;
  }
  const std::string hidden = fmt::format(
      "if [ $rank = 1 ]; then exec unshare -m bash -c 'mount -t tmpfs none {} && exec \"$@\"' - \"$@\"; fi", there);
  const Ended ended = run_each(3, hidden, kGenerate + there);
  expect_line(ended, 2, "rank 1");
  CHECK(ended.says(there));
}

TEST_CASE("another model at the same path on one host") {
  const ScratchFolder folder;
  const std::string synthetic = "synthetic:gpt2,n_embd=16,n_head=2,n_positions=40,vocab_size=50,n_layer=3";
  CHECK(run_program(0, "convert --model " + synthetic + ",seed=1 --output " + (folder / "one/m.h5"), 60,
                    fmt::format("mkdir {0}/one {0}/two; ", folder.path().string()))
            .status == 0);
  // Relative paths from folders of the ranks' own stand for paths on hosts of their own.
  const std::string own_folder =
      fmt::format("cd {}\nif [ $rank = 2 ]; then cd two; else cd one; fi", folder.path().string());
  const std::string arguments = "bench --device cpu --threads 1 --prompt-tokens 4 --new-tokens 2 --model m.h5";
  for (const std::string other : {",seed=2", ",seed=1,n_inner=40"}) {
    CHECK(run_program(0, "convert --model " + synthetic + other + " --output " + (folder / "two/m.h5")).status == 0);
    const Ended ended = run_each(3, own_folder, arguments);
    expect_line(ended, 2, "m.h5: rank 2 (host ");
    CHECK(ended.says("has another model there than rank 0 (host "));
  }
  std::filesystem::copy_file(folder / "one/m.h5", folder / "two/m.h5",
                             std::filesystem::copy_options::overwrite_existing);
  CHECK(run_each(3, own_folder, arguments).status == 0);
  // Weights without checksums.
  const Ended seeds = run_each(2, "a=$1; shift; set -- $a ${@//seed=1/seed=$((rank + 1))}",
                               "bench --threads 1 --prompt-tokens 4 --new-tokens 2 --model " + synthetic + ",seed=1");
  expect_line(seeds, 2, "rank 1 (host ");
}

TEST_CASE("another program on one host is refused, another build of the same is not") {
  const ScratchFolder folder;
  const std::string version = run_program(0, "--version").out;
  const std::size_t at = version.find("sources ");
  REQUIRE(at != std::string::npos);
  const std::string sources = version.substr(at + 8, 12);
  std::string program = read_file(STAGECOACH_PROGRAM);
  const std::string other = "0123456789ab";
  REQUIRE(sources != other);
  std::size_t found = program.find(sources);
  REQUIRE(found != std::string::npos);
  for (; found != std::string::npos; found = program.find(sources, found)) program.replace(found, 12, other);
  write_file(folder / "stagecoach", program);
  std::filesystem::permissions(folder / "stagecoach", std::filesystem::perms::owner_all);
  for (const std::string which : {"$rank = 1", "$rank != 0", "$rank = 0"}) {
    const std::string does = fmt::format("if [ {} ]; then shift; exec {} \"$@\"; fi", which, folder / "stagecoach");
    const Ended ended = run_each(3, does, kGenerate + kTiny);
    expect_line(ended, 2, "rank 1 (host ");
    CHECK(ended.says("runs another program than rank 0 (host "));
    CHECK(ended.says("sources " + sources));
    CHECK(ended.says("sources " + other));
    CHECK(ended.says(folder / "stagecoach"));
    CHECK(ended.says(", like 1 more,") == (which != "$rank = 1"));
  }
  const std::string emulated =
      fmt::format("if [ $rank = 1 ]; then shift; exec {} \"$@\"; fi", STAGECOACH_EMULATED_PROGRAM);
  const Ended same =
      run_each(2, emulated, "bench --device cpu --threads 1 --prompt-tokens 4 --new-tokens 2 --model " + kTiny);
  INFO(same.err);
  CHECK(same.status == 0);
}

TEST_CASE("a host without GPU among others") {
  const std::string without = "if [ $rank = 1 ]; then export STAGECOACH_EMULATION=devices=0; fi";
  const std::string arguments = "bench --prompt-tokens 4 --new-tokens 2 --model " + kTiny;
  const Ended ended = run_each(3, without + "; STAGECOACH_EMULATION=${STAGECOACH_EMULATION:-devices=3}", arguments, "",
                               STAGECOACH_EMULATED_PROGRAM);
  expect_line(ended, 2, "rank 1");
  CHECK(ended.says("sees no GPU although other ranks do; give --device cpu"));
}

TEST_CASE("hosts, places and programs that mpirun does not find") {
  const std::string version = "--version";
  const auto started = [&](const std::string& options, const std::string& program = STAGECOACH_PROGRAM) {
    return run_each(2, "", version, options, program);
  };
  const Ended wrong = started("--host localhost:1,no-such-host.invalid:1");
  expect_line(wrong, 2, "no such host: no-such-host.invalid; check the names");
  const ScratchFolder folder;
  write_file(folder / "hosts", "# two\nlocalhost slots=1\nuser@no-such-host.invalid slots=1\n");
  expect_line(started("--hostfile " + (folder / "hosts")), 2, "no such host: no-such-host.invalid; check the names");
  // Names that there are, and an ssh that gets nowhere.
  write_file(folder / "ssh", "#!/bin/sh\nexit 255\n");
  std::filesystem::permissions(folder / "ssh", std::filesystem::perms::owner_all);
  const std::string refused = fmt::format("-mca plm_rsh_agent {} --host 192.0.2.1:2", folder / "ssh");
  expect_line(started(refused), 2, "could not start on every host (192.0.2.1): `ssh HOST true` must work");
  const char* const allowed = std::getenv("OMPI_MCA_rmaps_base_oversubscribe");
  unsetenv("OMPI_MCA_rmaps_base_oversubscribe");
  expect_line(started("--host localhost:1"), 2, "say how many each host takes, as in --host a:2,b:2");
  if (allowed != nullptr) setenv("OMPI_MCA_rmaps_base_oversubscribe", allowed, 1);
  Ended missing = run_program(0, "", 60,
                              fmt::format("{}/launch/mpirun -n 2 {} --version 2> {}; exit; ", STAGECOACH_SOURCE_DIR,
                                          folder / "stagecoach", folder / "err"));
  missing.err = read_file(folder / "err");
  expect_line(missing, 2, "the program is not there on every host");
}

TEST_CASE("the mpirun of another MPI starts copies, which are refused once") {
  const auto started = [](const std::string& environment) {
    return run_program(0, "plan --model " + kTiny, 60, "export " + environment + "; ");
  };
  expect_line(started("PMI_SIZE=3 PMI_RANK=0"), 2, "start them with Open MPI's mpirun");
  CHECK(started("PMI_SIZE=3 PMI_RANK=2").status == 2);
  CHECK(started("PMI_SIZE=3 PMI_RANK=2").err.empty());
  CHECK(started("PMI_SIZE=1 PMI_RANK=0").status == 0);
}

TEST_CASE("output where one may not write") {
  const ScratchFolder folder;
  const std::string as_nobody = "setpriv --reuid=65534 --regid=65534 --clear-groups ";
  const bool root = geteuid() == 0;
  if (root && !works(fmt::format("{}test -x {} && {}test -r {}/configs/demo/model.h5", as_nobody, STAGECOACH_PROGRAM,
                                 as_nobody, STAGECOACH_SOURCE_DIR))) {
    MESSAGE("skipped: another user than root cannot run the program from here");
    return;
  }
  std::filesystem::create_directory(folder / "locked");
  write_file(folder / "locked/older.jsonl", "older\n");
  for (const char* name : {"locked", "locked/older.jsonl"}) {
    std::filesystem::permissions(folder / name,
                                 std::filesystem::perms::owner_write | std::filesystem::perms::others_write,
                                 std::filesystem::perm_options::remove);
  }
  for (const int ranks : {0, 3}) {
    for (const char* name : {"new.jsonl", "older.jsonl", "new.h5"}) {
      const std::string output = folder / "locked/" + name;
      const std::string start = fmt::format("cd {0}; {1} {2} {3} {4} 2> {0}/err; exit; ", folder.path().string(),
                                            root ? as_nobody + "env HOME=/" : "",
                                            ranks > 0 ? fmt::format("{} -n {}", STAGECOACH_MPIEXEC, ranks) : "",
                                            STAGECOACH_PROGRAM, kGenerate + kDemo + " --output " + output);
      Ended ended = run_program(0, "", 60, start);
      ended.err = read_file(folder / "err");
      expect_line(ended, 2, output);
      CHECK(ended.says("Permission denied"));
    }
  }
  CHECK(read_file(folder / "locked/older.jsonl") == "older\n");
  std::filesystem::permissions(folder / "locked", std::filesystem::perms::owner_all);
}

namespace {

const std::string kEndless =
    "bench --device cpu --threads 1 --prompt-tokens 900 --new-tokens 100 --batch 16 --repeat 1000 --quiet "
    "--model synthetic:gpt2,n_layer=6,n_embd=96,n_head=3,vocab_size=500";

// Memory that its processes may take together, where root may set one (cgroup version 1).
class MemoryLimit {
 public:
  explicit MemoryLimit(int mib) : path_(fmt::format("/sys/fs/cgroup/memory/stagecoach-test-{}", getpid())) {
    std::error_code failed;
    made_ = std::filesystem::exists("/sys/fs/cgroup/memory/memory.limit_in_bytes", failed) &&
            std::filesystem::create_directory(path_, failed) &&
            works(fmt::format("echo {}M > {}/memory.limit_in_bytes", mib, path_));
  }
  ~MemoryLimit() {
    for (int i = 0; made_ && i < 100 && ::rmdir(path_.c_str()) != 0; ++i) usleep(50000);
  }
  MemoryLimit(const MemoryLimit&) = delete;
  MemoryLimit& operator=(const MemoryLimit&) = delete;
  bool made() const { return made_; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  bool made_ = false;
};

}  // namespace

TEST_CASE("a rank that the system kills is named, with what may help") {
  const std::string advice =
      ") was killed (signal 9), probably because the memory limit of its host, job or container was reached: give it a "
      "smaller --memory-per-rank";
  const Ended killed = run_each(3, "if [ $rank = 2 ]; then (sleep 3; kill -9 $$) & fi", kEndless);
  expect_line(killed, 1, "stagecoach: rank 2 (host ");
  CHECK(killed.says(advice));
  // Whoever ends mpirun itself hears of it as well.
  const Ended ended = run_each(2, "if [ $rank = 1 ]; then (sleep 3; kill -TERM $PPID) & fi", kEndless);
  expect_line(ended, 1, "mpirun ended with status 1");

  const MemoryLimit limit(300);
  if (!limit.made()) {
    MESSAGE("skipped: a real memory limit, for lack of rights to set one");
    return;
  }
  // Under the limit there is room for the rank, until another process comes, which the system would rather keep.
  const std::string with_another = fmt::format(
      "if [ $rank = 1 ]; then\n  echo $$ > {}/cgroup.procs\n  (sleep 3; head -c 2G /dev/zero | tail > /dev/null) &\n"
      "  echo 1000 > /proc/self/oom_score_adj\nfi",
      limit.path());
  const Ended out_of_memory = run_each(2, with_another, kEndless);
  expect_line(out_of_memory, 1, "stagecoach: rank 1 (host ");
  CHECK(out_of_memory.says(advice));
}

TEST_CASE("an mpirun that waits for itself once its ranks have ended is ended") {
  const ScratchFolder folder;
  std::filesystem::create_directory(folder / "bin");
  write_file(folder / "bin/mpirun", "#!/bin/bash\nsleep 1 &\nexec sleep 100\n");  // which does not ask how its child ended
  std::filesystem::permissions(folder / "bin/mpirun", std::filesystem::perms::owner_all);
  Ended ended = run_program(0, "; exit", 60,
                            fmt::format("export PATH={}:$PATH; exec {}/launch/mpirun -n 1 true 2>{}; ", folder / "bin",
                                        STAGECOACH_SOURCE_DIR, folder / "err"));
  ended.err = read_file(folder / "err");
  expect_line(ended, 1, "all ranks have ended but mpirun did not", 30);
}
