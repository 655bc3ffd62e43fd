#include "launch/slurm.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "launch/commands.hpp"
#include "launch/log.hpp"
#include "launch/machine.hpp"
#include "launch/plan.hpp"
#include "launch/requeue.inc"
#include "partition/placement.hpp"
#include "partition/wording.hpp"
#include "runtime/output_file.hpp"

namespace stagecoach {
namespace {

constexpr std::int32_t kDefaultCpus = 4;  // where the run file leaves threads open
// A plan's bytes are exact but for what the process itself takes, which is measured elsewhere and without prompts.
constexpr std::int64_t kSlackBytes = 256 << 20;
// Of the host, for a rank on a GPU: code and context of CUDA, pinned buffers while loading, prompts and results.
constexpr std::int64_t kBesideGpuBytes = std::int64_t{4} << 30;
constexpr std::int64_t kMiB = 1 << 20;

std::int64_t in_mib(std::int64_t bytes) {
  return (bytes + kMiB - 1) / kMiB;
}

// As one word of the shell.
std::string quoted(const std::string& text) {
  constexpr std::string_view kPlain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./:=,+-";
  if (!text.empty() && text.find_first_not_of(kPlain) == std::string::npos) return text;
  std::string result = "'";
  for (const char c : text) result += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return result + "'";
}

// What the job will be, as its own command line reads it: a mistake in the run file is said now, not by the job.
Options read_job(const Options& o) {
  const Command command = o.job.value_or(o.text_paths.empty() ? Command::kGenerate : Command::kScore);
  std::vector<std::string> arguments = {command == Command::kScore ? "score" : "generate", "--config", o.run_file.path};
  if (o.stages && !o.run_file.stages) arguments.insert(arguments.end(), {"--stages", std::to_string(*o.stages)});
  if (o.replicas > 1) arguments.insert(arguments.end(), {"--replicas", std::to_string(o.replicas)});
  if (o.context_shards > 1) {
    arguments.insert(arguments.end(), {"--context-shards", std::to_string(o.context_shards)});
  }
  return std::get<Options>(parse_command_line(arguments, {}));
}

void require_batch(const Options& job) {
  const std::string& file = job.run_file.path;
  if (job.output_path.empty()) {
    throw UsageError(
        fmt::format("{}: output: missing; a batch job needs a file for its results, by which it goes on", shown(file)));
  }
  if (job.prompts_path == "-") {
    throw UsageError(fmt::format("{}: prompts: a batch job has no standard input; name a file", shown(file)));
  }
  if (job.fresh) {
    throw UsageError(fmt::format(
        "{}: fresh: a job that starts over whenever it is queued again is never done; leave it out", shown(file)));
  }
  const auto numbered = [](const DeviceWish& wish) { return wish.index.value_or(0) > 0; };
  if (numbered(job.device)) {
    throw UsageError(
        fmt::format("{}: device: each task of the batch job sees one GPU, its own; write cuda", shown(file)));
  }
  for (std::size_t s = 0; job.run_file.stages && s < job.run_file.stages->size(); ++s) {
    if (!numbered((*job.run_file.stages)[s].device)) continue;
    throw UsageError(fmt::format("{}: device: each task of the batch job sees one GPU, its own; write cuda",
                                 job.run_file.stage_places.at(s)));
  }
}

// Slurm gives each node as many tasks as the others: then stages find their hosts.
std::vector<std::string> hosts_of(const RunFile& file) {
  std::vector<std::string> hosts;
  std::vector<std::int64_t> counts;
  if (!file.stages || std::ranges::all_of(*file.stages, &std::string::empty, &StageSpec::host)) return hosts;
  for (std::size_t s = 0; s < file.stages->size(); ++s) {
    const std::string& name = (*file.stages)[s].host;
    if (name.empty()) {
      throw UsageError(fmt::format(
          "{}: host: missing, and other stages have one; in a batch job name hosts of all stages, or of none",
          file.stage_places.at(s)));
    }
    const auto found = std::ranges::find_if(hosts, [&](const std::string& host) { return same_host(host, name); });
    counts.resize(hosts.size() + (found == hosts.end() ? 1 : 0));
    ++counts[static_cast<std::size_t>(found - hosts.begin())];
    if (found == hosts.end()) hosts.push_back(name);
  }
  const auto other = std::ranges::find_if(counts, [&](std::int64_t count) { return count != counts.front(); });
  if (other != counts.end()) {
    const std::string& name = hosts[static_cast<std::size_t>(other - counts.begin())];
    throw UsageError(fmt::format(
        "{}: host: {} of the stages on {} but {} on {}; Slurm gives each node of a job as many tasks as the others, so "
        "name each host as often, or leave the hosts out",
        file.path, counts.front(), shown(hosts.front()), *other, shown(name)));
  }
  return hosts;
}

bool has_own_budgets(const Options& o) {
  const auto& stages = o.run_file.stages;
  return o.memory_per_rank || (stages && std::ranges::any_of(*stages, [](const StageSpec& stage) {
                                 return stage.memory_bytes.has_value();
                               }));
}

// Of the host's memory, of the rank that takes most: its budget, or what the plan says and some slack.
std::int64_t most_bytes(const Options& options, const std::vector<PlannedRank>& ranks) {
  std::int64_t most = 0;
  for (std::size_t s = 0; s < ranks.size(); ++s) {
    std::int64_t bytes = ranks[s].cuda ? kBesideGpuBytes : ranks[s].needed_bytes;
    if (!ranks[s].cuda) {
      const auto& stages = options.run_file.stages;
      const auto own = stages && (*stages)[s].memory_bytes ? (*stages)[s].memory_bytes : options.memory_per_rank;
      bytes = own.value_or(bytes + bytes / 20 + kSlackBytes);
    }
    most = std::max(most, bytes);
  }
  return in_mib(most) * kMiB;
}

std::string counted(std::int64_t count, std::string_view what) {
  return fmt::format("{} {}{}", count, what, count == 1 ? "" : "s");
}

std::string title_of(const Options& options, const BatchJob& job) {
  const std::string replicas = options.replicas > 1 ? fmt::format("{} replicas of ", options.replicas) : "";
  const std::string shards =
      options.context_shards > 1 ? fmt::format(" of {} context shards", options.context_shards) : "";
  return fmt::format("{}: {}{}{}, each a task with {}, {} MiB{}", shown(options.run_file.path), replicas,
                     counted(job.tasks / options.replicas / options.context_shards, "stage"), shards, counted(job.cpus, "CPU"), in_mib(job.task_bytes),
                     job.gpus ? " and a GPU" : "");
}

BatchJob fitted_job(Options options) {
  const Options read = read_job(options);
  require_batch(read);
  BatchJob job;
  job.command = {std::filesystem::read_symlink("/proc/self/exe"),
                 read.command == Command::kScore ? "score" : "generate", "--config", options.run_file.path};
  const auto say = [&job](const char* option, const std::string& value) {
    job.command.insert(job.command.end(), {option, value});
  };
  job.cpus = options.threads.value_or(kDefaultCpus);
  const bool leaves_threads = !options.threads;
  options.threads = job.cpus;
  const std::vector<PlannedRank> ranks = planned_ranks(options);
  const auto stages = static_cast<std::int32_t>(ranks.size());
  job.tasks = std::int64_t{stages} * options.replicas * options.context_shards;
  job.gpus = std::ranges::any_of(ranks, &PlannedRank::cuda);
  job.task_bytes = most_bytes(options, ranks);
  if (!options.run_file.stages) say("--stages", std::to_string(stages));
  if (options.replicas > 1) say("--replicas", std::to_string(options.replicas));
  if (options.context_shards > 1) say("--context-shards", std::to_string(options.context_shards));
  if (leaves_threads) say("--threads", std::to_string(job.cpus));
  if (!job.gpus) {
    say("--device", "cpu");  // as planned, whatever the nodes have
    if (!has_own_budgets(options) && !options.check) {
      say("--memory-per-rank", fmt::format("{}MiB", in_mib(job.task_bytes)));
    }
  }
  job.hosts = hosts_of(options.run_file);
  job.folder = std::filesystem::current_path();
  job.output = read.output_path;
  job.time = options.slurm_time;
  job.partition = options.slurm_partition;
  job.title = title_of(options, job);
  return job;
}

}  // namespace

std::string batch_file(const BatchJob& job) {
  std::string text = fmt::format("#!/usr/bin/env bash\n# Written by stagecoach slurm for {}.\n", job.title);
  const auto ask = [&text](const std::string& line) { text += fmt::format("#SBATCH --{}\n", line); };
  ask("job-name=stagecoach");
  if (!job.partition.empty()) ask(fmt::format("partition={}", job.partition));
  if (!job.time.empty()) ask(fmt::format("time={}", job.time));
  ask(fmt::format("ntasks={}", job.tasks));
  if (!job.hosts.empty()) {
    ask(fmt::format("nodes={}", job.hosts.size()));
    ask(fmt::format("ntasks-per-node={}", job.tasks / std::ssize(job.hosts)));
    ask(fmt::format("nodelist={}", fmt::join(job.hosts, ",")));
  }
  ask(fmt::format("cpus-per-task={}", job.cpus));
  // Slurm counts memory by CPU. A sixteenth more than the ranks may take, for what else counts as the job's.
  const std::int64_t cpu_bytes = (job.task_bytes + job.task_bytes / 16) / job.cpus;
  ask(fmt::format("mem-per-cpu={}M", in_mib(cpu_bytes)));
  if (job.gpus) ask("gpus-per-task=1");
  ask("signal=USR1@90");  // to the ranks, that many seconds before the time limit: they make durable what they have
  ask("requeue");
  ask("open-mode=append");
  text += fmt::format("set -u\n\n{}\ncd -- {} || exit 2\n", kRequeueShell, quoted(job.folder));
  // Since Slurm 22.05 steps do not take the number of CPUs from the job.
  text += fmt::format("until_done {} srun --mpi=pmix -K1 --cpus-per-task={}", quoted(job.output), job.cpus);
  for (const std::string& word : job.command) text += " " + quoted(word);
  return text + "\n";
}

int run_slurm(const Options& options, const World& world) {
  world.agree([&] {
    if (world.rank() != 0) return;
    const BatchJob job = fitted_job(options);
    const std::string text = batch_file(job);
    if (options.slurm_path.empty()) return write_all(STDOUT_FILENO, text, "standard output");
    OutputFile file(options.slurm_path);
    file.write(text);
    file.commit();
    log_note(fmt::format("{} is for {}; submit it with sbatch {}", shown(options.slurm_path), job.title,
                         quoted(options.slurm_path)));
  });
  return 0;
}

}  // namespace stagecoach
