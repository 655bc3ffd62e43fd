// Plans against runs: the machine is measured with as many ranks as will run, then what a plan predicts is compared
// with what the program does, and the time to the first token of a long prompt with that of one rank.
//
//   bench_plan [--model synthetic:gpt2-xl] [--dtype float16] [--ranks 2] [--machine FILE] [--keep FILE]
//
// --machine takes an earlier measurement; --keep leaves the new one there. Every rank has one thread.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "partition/machine.hpp"
#include "partition/planner.hpp"
#include "runtime/json.hpp"
#include "runtime/weight_source.hpp"

namespace {

using namespace stagecoach;

struct Settings {
  std::string model = "synthetic:gpt2-xl";
  std::string dtype = "float16";
  int ranks = 2;
  std::string machine, keep;
};

struct Run {
  const char* name;
  std::int64_t prompt_tokens, new_tokens, batch;
};
constexpr Run kRuns[] = {{"one short prompt", 64, 24, 1},
                         {"one long prompt", 960, 8, 1},
                         {"4 prompts", 64, 24, 4},
                         {"16 prompts", 32, 16, 16}};

struct Figures {
  double ttft_s = 0.0, prefill = 0.0, decode = 0.0;
};

double median_of(const Json& root, const char* field) {
  const Json* value = root.find(field) == nullptr ? nullptr : root.find(field)->find("median");
  if (value == nullptr) throw std::runtime_error(fmt::format("bench --json gives no {}", field));
  return value->real() != nullptr ? *value->real() : static_cast<double>(*value->integer());
}

void execute(const std::string& command) {
  if (std::system(command.c_str()) != 0) throw std::runtime_error("failed: " + command);
}

std::string launcher(int ranks) {
  return ranks == 1 ? "" : fmt::format("{} -n {} --bind-to none --oversubscribe ", STAGECOACH_MPIEXEC, ranks);
}

std::string temporary(const char* name) {
  return (std::filesystem::temp_directory_path() / name).string();
}

// `stages` as the run file lists them.
Figures measure(const Settings& s, const Run& run, int ranks, const PipelinePlan& plan) {
  const std::string config = temporary("stagecoach-bench-plan.yaml");
  const std::string json = temporary("stagecoach-bench-plan.json");
  std::string text = "pipeline:\n  stages:\n";
  for (const PlannedStage& stage : plan.stages) {
    text += fmt::format("    - {{blocks: [{}, {}]}}\n", stage.blocks.first, stage.blocks.last);
  }
  text += "  chunk_tokens: [";
  for (const std::int32_t length : plan.chunks) text += fmt::format("{}, ", length);
  text += fmt::format("{}]\n  in_flight: {}\n", plan.chunks.back(), plan.in_flight);
  std::ofstream(config) << text;
  execute(fmt::format(
      "{}{} bench --quiet --device cpu --threads 1 --repeat 3 --model {},dtype={} --config {} --prompt-tokens {} "
      "--new-tokens {} --batch {} --json {} >/dev/null",
      launcher(ranks), STAGECOACH_PROGRAM, s.model, s.dtype, config, run.prompt_tokens, run.new_tokens, run.batch,
      json));
  std::ifstream file(json);
  const Json root = parse_json(std::string{std::istreambuf_iterator<char>(file), {}});
  return {median_of(root, "ttft_s"), median_of(root, "prefill_tokens_per_s"), median_of(root, "decode_tokens_per_s")};
}

// Only time matters here, so there is room for everything.
DeviceLayout roomy() {
  DeviceLayout layout;
  layout.matrix_bytes = [](std::int64_t, std::int64_t) { return std::int64_t{0}; };
  layout.own_bytes = [](const StageOperations&) { return std::int64_t{0}; };
  return layout;
}

PipelinePlan plan_for(const ModelConfig& model, const Machine& machine, const Run& run, int ranks) {
  PlanRequest request;
  request.model = model;
  for (int d = 0; d < ranks; ++d) request.devices.push_back({roomy(), machine.device(d).speed, machine.link, {}});
  request.job = {run.prompt_tokens, run.new_tokens, run.batch};
  request.stages = ranks;
  request.hold_decode = true;
  return make_plan(request);
}

void compare(const Settings& s, const ModelConfig& model, const Machine& machine) {
  std::vector<double> errors;
  fmt::print("{:<18} {:>5}  {:<22} {:>10} {:>10} {:>8}\n", "", "ranks", "", "predicted", "measured", "off by");
  const auto row = [&](const Run& run, int ranks, const char* what, double predicted, double measured) {
    const double error = predicted / measured - 1.0;
    errors.push_back(std::abs(error));
    fmt::print("{:<18} {:>5}  {:<22} {:>10.4g} {:>10.4g} {:>+6.1f} %\n", run.name, ranks, what, predicted, measured,
               100 * error);
    std::fflush(stdout);
  };
  for (const Run& run : kRuns) {
    const PipelinePlan plan = plan_for(model, machine, run, s.ranks);
    const Figures figures = measure(s, run, s.ranks, plan);
    row(run, s.ranks, "first token, s", plan.prediction.ttft_s, figures.ttft_s);
    row(run, s.ranks, "decode, tokens/s", plan.prediction.decode_tokens_per_s, figures.decode);
  }
  std::ranges::sort(errors);
  fmt::print("median error {:.1f} %, largest {:.1f} %\n", 100 * errors[errors.size() / 2], 100 * errors.back());
}

// A prompt over p ranks, in chunks, against one rank: n equal chunks could be p * n / (n + p - 1) times as fast.
void long_prompt(const Settings& s, const ModelConfig& model, const Machine& machine) {
  const Run run{"long prompt", std::min<std::int64_t>(960, model.n_positions - 2), 2, 1};
  const PipelinePlan many = plan_for(model, machine, run, s.ranks);
  const PipelinePlan one = plan_for(model, machine, run, 1);
  const double measured_one = measure(s, run, 1, one).ttft_s;
  const double measured_many = measure(s, run, s.ranks, many).ttft_s;
  std::int64_t chunks = 0;
  for (std::int64_t at = 0; at < run.prompt_tokens; at = chunk_end(many.chunks, at)) ++chunks;
  const double ideal = static_cast<double>(s.ranks * chunks) / static_cast<double>(chunks + s.ranks - 1);
  const double speedup = measured_one / measured_many;
  fmt::print(
      "{} tokens in {} chunks: one rank {:.2f} s, {} ranks {:.2f} s: {:.2f} times as fast, {:.2f} of p n / (n + p - "
      "1), "
      "{:.2f} of the predicted time's rate\n",
      run.prompt_tokens, chunks, measured_one, s.ranks, measured_many, speedup, speedup / ideal,
      many.prediction.ttft_s / measured_many);
}

Settings parse(int argc, char** argv) {
  Settings s;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (i + 1 == argc) throw std::runtime_error(option + ": unknown, or lacks its value");
    const std::string value = argv[++i];
    if (option == "--model") s.model = value;
    if (option == "--dtype") s.dtype = value;
    if (option == "--ranks") s.ranks = std::stoi(value);
    if (option == "--machine") s.machine = value;
    if (option == "--keep") s.keep = value;
  }
  return s;
}

}  // namespace

int main(int argc, char** argv) {
  for (const char* name : {"OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"}) ::setenv(name, "1", 1);
  try {
    const Settings s = parse(argc, argv);
    std::string machine_path = s.machine;
    if (machine_path.empty()) {
      machine_path = s.keep.empty() ? temporary("stagecoach-bench-machine.yaml") : s.keep;
      execute(fmt::format("{}{} profile --quiet --device cpu --threads 1 --model {},dtype={} --output {}",
                          launcher(s.ranks), STAGECOACH_PROGRAM, s.model, s.dtype, machine_path));
    }
    const Machine machine = read_machine(machine_path);
    const Model model = open_model(s.model);
    compare(s, model.config, machine);
    long_prompt(s, model.config, machine);
  } catch (const std::exception& error) {
    fmt::print(stderr, "bench_plan: {}\n", error.what());
    return 1;
  }
  return 0;
}
