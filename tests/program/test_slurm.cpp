// `stagecoach slurm`: batch files that ask for what the plan needs; and copies that srun does not connect are refused.
// tests/slurm runs such files.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cstdlib>

#include "tests/program/run_program.hpp"

using namespace stagecoach::test;

namespace {

const std::string kTiny = "synthetic:gpt2,n_layer=6,n_embd=32,n_head=2,n_positions=300,vocab_size=90,seed=1";
const std::string kJob = "model: '" + kTiny + "'\nprompts: p.jsonl\noutput: o.jsonl\n";

}  // namespace

TEST_CASE("a batch file asks for a task with its CPUs and memory for each stage") {
  const ScratchFolder folder;
  const auto batch = [&](const std::string& run_file, const std::string& options = "") {
    write_file(folder / "it's.yaml", kJob + run_file);
    const Ended ended = run_program(0, fmt::format("slurm --config \"{}\" {}", folder / "it's.yaml", options));
    INFO(ended.err);
    CHECK(ended.status == 0);
    write_file(folder / "job.sbatch", ended.out);
    CHECK(std::system(fmt::format("bash -n '{}'", folder / "job.sbatch").c_str()) == 0);
    return ended.out;
  };
  const auto has = [](const std::string& text, const std::string& part) {
    CAPTURE(text);
    CHECK(text.find(part) != std::string::npos);
  };
  const auto lacks = [](const std::string& text, const std::string& part) {
    CAPTURE(text);
    CHECK(text.find(part) == std::string::npos);
  };

  const std::string plain = batch("pipeline: {stages: 3}\n", "--time 1:30:00 --partition low");
  CHECK(plain.starts_with("#!/usr/bin/env bash\n"));
  for (const char* line : {"ntasks=3", "cpus-per-task=4", "time=1:30:00", "partition=low", "signal=USR1@90", "requeue",
                           "open-mode=append"}) {
    has(plain, fmt::format("\n#SBATCH --{}\n", line));
  }
  has(plain, "it'\\''s.yaml' --stages 3 --threads 4 --device cpu --memory-per-rank ");
  has(plain, "\nuntil_done o.jsonl srun --mpi=pmix -K1 --cpus-per-task=4 " STAGECOACH_PROGRAM " generate --config ");
  has(plain, "0 | 2 | 3)");
  lacks(plain, "gpu");

  const std::string replicas = batch("pipeline: {stages: 3, replicas: 2}\n", "--replicas 4");
  has(replicas, ": 4 replicas of 3 stages, each a task with 4 CPUs, ");
  has(replicas, "\n#SBATCH --ntasks=12\n");
  has(replicas, " --stages 3 --replicas 4 ");

  // A budget is what the task gets, and a sixteenth besides.
  const std::string budgets =
      batch("threads: 2\npipeline:\n  stages: [{blocks: [0, 1], memory: 1GiB}, {blocks: [2, 5], memory: 2GiB}]\n");
  has(budgets, "\n#SBATCH --ntasks=2\n#SBATCH --cpus-per-task=2\n#SBATCH --mem-per-cpu=1088M\n");
  has(budgets, "it'\\''s.yaml' --device cpu\n");
  has(budgets, "\nuntil_done o.jsonl srun --mpi=pmix -K1 --cpus-per-task=2 ");
  lacks(budgets, "--time=");

  const std::string hosts =
      batch("pipeline: {stages: [{blocks: [0, 1], host: b}, {blocks: [2, 5], host: a}]}\n", "--replicas 2");
  has(hosts, "\n#SBATCH --ntasks=4\n#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=2\n#SBATCH --nodelist=b,a\n");

  const std::string gpus = batch("device: cuda\ndtype: float16\nthreads: 1\n", "--stages 2 score");
  has(gpus, "\n#SBATCH --ntasks=2\n");
  has(gpus, "\n#SBATCH --gpus-per-task=1\n");
  has(gpus, " score --config ");
  lacks(gpus, "--memory-per-rank");
  lacks(gpus, "--device");
}

TEST_CASE("what cannot be a batch job is refused, with the place") {
  const ScratchFolder folder;
  const auto refused = [&](const std::string& run_file, const std::string& options, int status,
                           const std::string& says) {
    write_file(folder / "r.yaml", run_file);
    const Ended ended = run_program(
        0, fmt::format("slurm --config {} --write {} {}", folder / "r.yaml", folder / "job.sbatch", options));
    INFO(ended.err);
    CHECK(ended.status == status);
    CHECK(ended.messages() == 1);
    CHECK(ended.says(says));
    CHECK_FALSE(std::filesystem::exists(folder / "job.sbatch"));
  };
  const std::string model = "model: '" + kTiny + "'\n";
  refused(model + "prompts: p\n", "", 2, "r.yaml: output: missing; a batch job needs a file");
  refused(model + "output: o.jsonl\n", "", 2, "no prompt");
  refused(model + "output: o.jsonl\n", "score", 2, "no text");
  refused(model + "prompts: '-'\noutput: o.jsonl\n", "", 2, "r.yaml: prompts: a batch job has no standard input");
  refused(kJob + "fresh: true\n", "", 2, "r.yaml: fresh: ");
  refused(kJob + "threads: many\n", "", 2, "r.yaml:4:10: threads: ");
  refused(kJob, "--time soon", 2, "--time: soon is not a time as Slurm takes it");
  refused(kJob, "--stages 7", 2, "7 stages but the model has only 6 blocks");
  refused(kJob, "generate score", 2, "score: unexpected argument");
  refused(kJob, "bench", 2, "bench: not a command that batch jobs run");
  refused(kJob + "pipeline: {stages: [{blocks: [0, 2]}, {blocks: [3, 5], device: 'cuda:1'}]}\n", "", 2,
          "device: each task of the batch job sees one GPU, its own; write cuda");
  refused(kJob + "pipeline: {stages: [{blocks: [0, 2]}, {blocks: [3, 5], host: a}]}\n", "", 2,
          "r.yaml:4:21: host: missing, and other stages have one");
  refused(
      kJob + "pipeline: {stages: [{blocks: [0, 1], host: a}, {blocks: [2, 3], host: b}, {blocks: [4, 5], host: a}]}\n",
      "", 2, "r.yaml: host: 2 of the stages on a but 1 on b; Slurm gives each node of a job as many tasks");
  refused(kJob + "memory_per_rank: 8MiB\n", "", 3, "does not fit");
}

TEST_CASE("a job that was stopped is queued again, unless that is of no use or Slurm ends it") {
  const ScratchFolder folder;
  // What Slurm says of the job, and what is asked of Slurm.
  write_file(folder / "squeue", "#!/bin/sh\n[ \"$3\" = --jobs=$JOB ] && echo $STATE\n");
  write_file(folder / "scontrol", "#!/bin/sh\necho asked: $@\n");
  CHECK(std::system(fmt::format("chmod +x '{}' '{}'", folder / "squeue", folder / "scontrol").c_str()) == 0);
  const auto ends = [&](int status, const std::string& environment) {
    write_file(folder / "job", fmt::format("set -u\nexport {}\nPATH={}:$PATH\nsource {}/launch/slurm/requeue.sh\n"
                                           "(exit {})\ngo_on $?\n",
                                           environment, folder.path().string(), STAGECOACH_SOURCE_DIR, status));
    const int ended = std::system(fmt::format("bash {} > {} 2>&1", folder / "job", folder / "log").c_str());
    const std::string log = read_file(folder / "log");
    INFO(log);
    CHECK(WEXITSTATUS(ended) == status);
    return log;
  };
  const std::string running = "SLURM_JOB_ID=7 JOB=7 STATE=RUNNING";
  for (const int status : {0, 2, 3}) CHECK(ends(status, running).empty());
  for (const int status : {1, 75, 137, 143}) {
    CHECK(ends(status, running) ==
          fmt::format("stagecoach: status {}; queued again (restart 1 of at most 20)\nasked: requeue 7\n", status));
  }
  CHECK(ends(75, running + " SLURM_RESTART_COUNT=19").ends_with("(restart 20 of at most 20)\nasked: requeue 7\n"));
  CHECK(ends(75, running + " SLURM_RESTART_COUNT=20").starts_with("stagecoach: status 75 after 20 restarts, so not "));
  CHECK(ends(75, "SLURM_JOB_ID=9 SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=2 JOB=7_2 STATE=RUNNING")
            .ends_with("asked: requeue 7_2\n"));
  CHECK(ends(75, "SLURM_JOB_ID=7 JOB=7 STATE=SIGNALING").ends_with("asked: requeue 7\n"));
  CHECK(ends(143, "SLURM_JOB_ID=7 JOB=7 STATE=COMPLETING").empty());  // cancelled, or preempted
  CHECK(ends(143, "SLURM_JOB_ID=7 JOB=8 STATE=RUNNING").empty());     // Slurm does not answer
}

TEST_CASE("ranks that srun could not start, of which it says nothing, are started again") {
  const ScratchFolder folder;
  // Ends with 0 and makes nothing, until it was called often enough.
  write_file(folder / "srun",
             fmt::format("#!/bin/sh\ncd {}\necho x >> calls\n[ $(wc -l < calls) -lt $1 ] || : > \"$2\"\n",
                         folder.path().string()));
  write_file(folder / "squeue", "#!/bin/sh\necho RUNNING\n");
  write_file(folder / "scontrol", "#!/bin/sh\necho asked: $@\n");
  const auto ends = [&](int calls) {
    const std::string name = fmt::format("out {}", calls);
    write_file(folder / "calls", "");
    write_file(folder / "job",
               fmt::format("set -u\nexport SLURM_JOB_ID=7\ncd {0}\nchmod +x srun squeue scontrol\nPATH={0}:$PATH\n"
                           "source {1}/launch/slurm/requeue.sh\nuntil_done '{2}' srun {3} '{2}'\n",
                           folder.path().string(), STAGECOACH_SOURCE_DIR, name, calls));
    const int ended = std::system(fmt::format("bash {} > {} 2>&1", folder / "job", folder / "log").c_str());
    return fmt::format("{} {}", WEXITSTATUS(ended), read_file(folder / "log"));
  };
  CHECK(ends(1) == "0 ");
  CHECK(ends(2) ==
        "0 stagecoach: srun ended with status 0 but out 2 is not there, so the ranks did not start; trying again\n");
  CHECK(ends(9).starts_with("1 stagecoach: srun ended with status 0 but out 9 is not there"));
  CHECK(ends(9).ends_with("stagecoach: status 1; queued again (restart 1 of at most 20)\nasked: requeue 7\n"));
}

TEST_CASE("several tasks of srun that MPI does not connect are refused once, and nothing else is") {
  const ScratchFolder folder;
  const std::string arguments = "plan --model " + kTiny;
  const auto started = [&](const std::string& environment, int ranks = 0) {
    return run_program(ranks, arguments, 60, "export " + environment + "; ");
  };
  const Ended first = started("SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=4 SLURM_PROCID=0");
  INFO(first.err);
  CHECK(first.status == 2);
  CHECK(first.messages() == 1);
  CHECK(first.says("srun started 4 tasks that MPI does not connect"));
  CHECK(first.says("srun --mpi=pmix"));
  const Ended other = started("SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=4 SLURM_PROCID=2");
  CHECK(other.status == 2);
  CHECK(other.err.empty());
  CHECK(started("SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=1 SLURM_PROCID=0").status == 0);
  CHECK(started("SLURM_NTASKS=4 SLURM_PROCID=0").status == 0);  // a batch script
  // mpirun that started its daemons with srun.
  CHECK(started("SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=4 SLURM_PROCID=0", 1).status == 0);
}
