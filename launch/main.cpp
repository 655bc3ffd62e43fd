// The program: reads the command line, runs the command, turns failures into one message and an exit status.
#include <fmt/format.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <variant>

#include "kernels/backend.hpp"
#include "kernels/cuda/cuda_backend.hpp"
#include "launch/command_line.hpp"
#include "launch/commands.hpp"
#include "launch/log.hpp"
#include "launch/machine.hpp"
#include "launch/same_everywhere.hpp"
#include "launch/world.hpp"
#include "runtime/nccl_transport.hpp"
#include "runtime/output_file.hpp"

namespace stagecoach {
namespace {

std::vector<std::string> features() {
  const std::string simd = simd_name(Simd::kBest);
  const std::string cuda = cuda_versions();
  const std::string nccl = nccl_version();
  return {fmt::format("CPU: {}", simd.empty() ? "no supported instruction set" : simd),
          cuda.empty() ? "CUDA: no" : cuda, nccl.empty() ? "NCCL: no" : nccl,
          fmt::format("sources {}", source_fingerprint())};
}

int run_command(const Options& options, const World& world) {
  switch (options.command) {
    case Command::kGenerate:
      return run_generate(options, world);
    case Command::kScore:
      return run_score(options, world);
    case Command::kTokenize:
      return run_tokenize(options, world);
    case Command::kConvert:
      return run_convert(options, world);
    case Command::kBench:
      return run_bench(options, world);
    case Command::kPlan:
      return run_plan(options, world);
    case Command::kProfile:
      return run_profile(options, world);
    case Command::kSlurm:
      return run_slurm(options, world);
  }
  return 2;
}

int run(int argc, char** argv) {
  const World world(&argc, &argv);
  use_small_thread_stacks();
  try {
    require_same_program(world);
    std::variant<Options, HelpText> parsed;
    world.agree([&] { parsed = parse_command_line({argv + 1, argv + argc}, features()); });
    if (const auto* help = std::get_if<HelpText>(&parsed)) {
      if (world.rank() == 0) write_all(STDOUT_FILENO, help->text, "standard output");
      return 0;
    }
    const Options& options = std::get<Options>(parsed);
    set_up_log(options.quiet ? LogLevel::kQuiet : options.verbose ? LogLevel::kVerbose : LogLevel::kNormal);
    world.set_silence_limit(options.timeout_s);
    const int status = run_command(options, world);
    world.leave();
    return status;
  } catch (const StartupFailed& failed) {
    return failed.status;  // said already
  } catch (const RunFailed& failed) {
    return world.fail(failed);
  } catch (...) {
    const Outcome outcome = outcome_of_current_exception();
    return world.fail({outcome.status, outcome.message, outcome.of_peer});
  }
}

}  // namespace
}  // namespace stagecoach

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);  // a closed standard output is an error that is reported, not a sudden death
  std::signal(SIGXFSZ, SIG_IGN);  // so is a file that may not grow further
  // Output files have a lock of their own (runtime/output_file.hpp), which HDF5's would take for another writer's.
  ::setenv("HDF5_USE_FILE_LOCKING", "FALSE", 1);
  stagecoach::set_up_log(stagecoach::LogLevel::kNormal);
  try {
    return stagecoach::run(argc, argv);
  } catch (const stagecoach::StartupFailed& failed) {
    return failed.status;  // another process says why
  } catch (...) {          // MPI itself did not start, or not as one job
    const stagecoach::Outcome outcome = stagecoach::outcome_of_current_exception();
    stagecoach::log_error(outcome.message);
    return outcome.status;
  }
}
