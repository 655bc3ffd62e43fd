#include "launch/command_line.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>

#include "launch/option_table.hpp"
#include "partition/wording.hpp"

namespace stagecoach {
namespace {

constexpr std::string_view kVersion = STAGECOACH_VERSION;  // from the build
constexpr std::size_t kHelpColumn = 30;
constexpr std::size_t kHelpWidth = 100;

struct CommandSpec {
  Command command;
  std::string_view name;
  std::string_view usage;
  std::string_view summary;
};

constexpr CommandSpec kCommands[] = {
    {Command::kGenerate, "generate", "--model M (--prompt TEXT... | --prompts FILE|-) [options]",
     "continue prompts with a GPT-2 model"},
    {Command::kScore, "score", "--model M (--text FILE... | --prompts FILE|-) [options]",
     "log-probabilities and perplexity of texts"},
    {Command::kTokenize, "tokenize", "--model M [--decode] [FILE|-]...",
     "turn each file, or standard input, into a line of token ids"},
    {Command::kConvert, "convert", "--model M --output FILE.h5 [--dtype D]", "make one self-contained model file"},
    {Command::kPlan, "plan", "--model M [--stages N|auto] [--context N] [--batch N] [options]",
     "who runs what, what it takes and how fast it will be, before anything runs"},
    {Command::kBench, "bench", "--model M [options]", "measure prefill and decode"},
    {Command::kProfile, "profile", "--model M --output FILE.yaml [options]",
     "measure the devices for plan, with as many ranks as will run"},
    {Command::kSlurm, "slurm", "--config run.yaml [generate|score] [--stages N] [--replicas N] [options]",
     "write a batch file for Slurm that runs what a run file says"},
};

// Values per option name, in the order of the command line.
using Values = std::map<std::string_view, std::vector<std::string>>;

struct Split {
  Values values;
  std::vector<std::string> rest;  // operands
};

std::string with_dashes(const OptionSpec& spec) {
  return spec.letter != '\0' ? fmt::format("-{}, --{}", spec.letter, spec.name) : fmt::format("--{}", spec.name);
}

// ---- help ----

void append_wrapped(std::string& out, std::string_view text, std::size_t indent) {
  std::size_t column = indent;
  while (!text.empty()) {
    const std::size_t space = std::min(text.find(' '), text.size());
    const std::string_view word = text.substr(0, space);
    if (column > indent && column + 1 + word.size() > kHelpWidth) {
      out += '\n';
      out.append(indent, ' ');
      column = indent;
    }
    if (column > indent) {
      out += ' ';
      ++column;
    }
    out += word;
    column += word.size();
    text.remove_prefix(std::min(space + 1, text.size()));
  }
  out += '\n';
}

void append_option(std::string& out, const OptionSpec& spec) {
  std::string left = "  " + with_dashes(spec);
  if (!spec.value.empty()) left += fmt::format(" {}", spec.value);
  if (left.size() + 2 > kHelpColumn) {
    out += left + '\n';
    left.clear();
  }
  left.resize(kHelpColumn, ' ');
  out += left;
  append_wrapped(out, spec.help, kHelpColumn);
}

std::string command_help(const CommandSpec& command) {
  std::string out = fmt::format("stagecoach {}: {}\n\nusage: stagecoach {} {}\n", command.name, command.summary,
                                command.name, command.usage);
  std::string_view group;
  for (const OptionSpec& spec : option_table()) {
    if ((spec.commands & bit_of(command.command)) == 0) continue;
    if (spec.group != group) out += fmt::format("\n{}:\n", spec.group);
    group = spec.group;
    append_option(out, spec);
  }
  out +=
      "\nEvery option can stand in the run file as well, with _ for -. Brackets hold defaults.\n"
      "Exit status: 0 done, 1 failed while running, 2 wrong usage or input, 3 does not fit, 75 interrupted.\n";
  return out;
}

std::string general_help() {
  std::string out =
      "stagecoach: GPT-2 over a pipeline of MPI ranks\n\nusage: stagecoach COMMAND [options]\n"
      "       mpirun -n N stagecoach COMMAND [options]     N ranks are N stages, or replicas x stages x context\n"
      "                                                    shards\n\nCommands:\n";
  for (const CommandSpec& command : kCommands) out += fmt::format("  {:<10}{}\n", command.name, command.summary);
  out += "\nstagecoach COMMAND --help lists a command's options; stagecoach --version names this build.\n";
  return out;
}

// ---- arguments ----

const CommandSpec& find_command(const std::string& name) {
  std::vector<std::string> known;
  for (const CommandSpec& command : kCommands) {
    if (command.name == name) return command;
    known.emplace_back(command.name);
  }
  const std::string have = fmt::format("this version has {}", fmt::join(known, ", "));
  if (name.starts_with('-')) {
    throw UsageError(
        fmt::format("{}: the command comes first, as in stagecoach generate {}", shown(name), shown(name)));
  }
  const std::string hint = suggestion(name, known);
  throw UsageError(fmt::format("{}: unknown command{}", shown(name), hint.empty() ? "; " + have : hint));
}

[[noreturn]] void fail_unknown_option(const std::string& argument, Command command) {
  const std::string word = argument.substr(0, argument.find('='));
  const std::string name = word.substr(std::min(word.find_first_not_of('-'), word.size()));
  if (find_option(name, command) != nullptr && word.starts_with("--")) {
    throw UsageError(fmt::format("{}: this command has no such option", shown(word)));
  }
  std::vector<std::string> known;
  for (const OptionSpec& spec : option_table()) {
    if ((spec.commands & bit_of(command)) != 0) known.push_back(fmt::format("--{}", spec.name));
  }
  throw UsageError(fmt::format("{}: unknown option{}", shown(word), suggestion(word, known)));
}

// CLI11 takes "--stop=" for an option that lacks its value, so the empty value becomes an argument of its
// own.
std::vector<std::string> with_empty_values(const std::vector<std::string>& arguments, Command command) {
  std::vector<std::string> result;
  for (const std::string& argument : arguments) {
    const OptionSpec* spec = nullptr;
    if (argument.starts_with("--") && argument.ends_with('=')) {
      spec = find_option(std::string_view(argument).substr(2, argument.size() - 3), command);
    }
    if (spec != nullptr && !spec->value.empty()) {
      result.push_back(argument.substr(0, argument.size() - 1));
      result.emplace_back();
    } else {
      result.push_back(argument);
    }
  }
  return result;
}

// Throws UsageError for unknown options, unless help or the version was asked for.
Split split_arguments(const std::vector<std::string>& arguments, Command command) {
  CLI::App app;
  app.set_help_flag();
  app.allow_extras();
  std::vector<std::pair<const OptionSpec*, CLI::Option*>> options;
  for (const OptionSpec& spec : option_table()) {
    if ((spec.commands & bit_of(command)) == 0) continue;
    std::string names = fmt::format("--{}", spec.name);
    if (spec.letter != '\0') names += fmt::format(",-{}", spec.letter);
    CLI::Option* option = spec.value.empty() ? app.add_flag(names) : app.add_option(names)->expected(1);
    option->allow_extra_args(false)->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
    options.emplace_back(&spec, option);
  }
  std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());
  try {
    app.parse(reversed);
  } catch (const CLI::ArgumentMismatch&) {  // only the last argument can lack its value
    throw UsageError(fmt::format("{}: needs a value", shown(arguments.back())));
  } catch (const CLI::Error& error) {
    throw UsageError(shown(error.what()));
  }
  Split split;
  for (const auto& [spec, option] : options) {
    if (option->count() > 0) split.values[spec->name] = option->results();
  }
  bool operands_only = split.values.contains("help") || split.values.contains("version");
  for (std::string& argument : app.remaining()) {
    if (argument == "--" && !operands_only) {
      operands_only = true;
    } else if (!operands_only && argument.size() > 1 && argument.starts_with('-')) {
      fail_unknown_option(argument, command);
    } else {
      split.rest.push_back(std::move(argument));
    }
  }
  return split;
}

// ---- values ----

// `place` is "--threads" or "run.yaml:3:7: threads".
void apply(const OptionSpec& spec, const std::string& value, const std::string& place, Options& options) {
  try {
    spec.apply(options, value);
  } catch (const UsageError& error) {
    throw UsageError(fmt::format("{}: {}", place, error.what()));
  }
}

bool overrides(const Values& values, std::string_view name) {
  const auto given = [&values](std::string_view other) { return values.contains(other); };
  if (name == "prompt" || name == "prompts" || name == "text")
    return given("prompt") || given("prompts") || given("text");
  if (name == "quiet" || name == "verbose") return values.contains("quiet") || values.contains("verbose");
  return values.contains(name);
}

void apply_run_file(const Values& values, Options& options) {
  for (const Setting& setting : options.run_file.settings) {
    const Command owner = setting.group == "bench"   ? Command::kBench
                          : setting.group == "plan"  ? Command::kPlan
                          : setting.group == "slurm" ? Command::kSlurm
                                                     : options.command;
    const OptionSpec* spec = find_option(setting.key, owner);
    if (spec == nullptr) throw UsageError(fmt::format("{}: {}: unknown key", setting.where, setting.key));
    if (overrides(values, spec->name)) continue;
    apply(*spec, setting.value, fmt::format("{}: {}", setting.where, setting.key), options);
  }
}

void apply_arguments(const Values& values, Options& options) {
  for (const auto& [name, given] : values) {
    const OptionSpec& spec = *find_option(name, options.command);
    if (given.size() > 1 && !spec.many && !spec.value.empty()) {
      throw UsageError(fmt::format("--{}: given {} times", name, given.size()));
    }
    for (const std::string& value : given) apply(spec, value, fmt::format("--{}", name), options);
  }
}

// The run file's list of stages: followed unless --stages says otherwise.
void settle_stages(const Values& values, Options& options) {
  RunFile& file = options.run_file;
  if (!file.stages) return;
  if (values.contains("stages")) {
    file.stages.reset();
    file.stage_places.clear();
    return;
  }
  options.stages = static_cast<std::int32_t>(file.stages->size());
  if (options.command == Command::kTokenize || options.command == Command::kConvert) return;
  for (StageSpec& stage : *file.stages) {
    if (values.contains("device")) stage.device = {};
    if (values.contains("memory-per-rank")) stage.memory_bytes.reset();
  }
}

void require_consistent(const Options& options) {
  if (options.command == Command::kSlurm && options.run_file.path.empty()) {
    throw UsageError("--config: missing; give the run file that the job is to run, with model, prompts and output");
  }
  if (options.model.empty()) {
    throw UsageError("--model: missing; give a model directory, or synthetic:gpt2 for random weights");
  }
  if (options.quiet && options.verbose) throw UsageError("--quiet and --verbose exclude each other; give one");
  if (!options.metrics_path.empty() && options.metrics_path == options.trace_path) {
    throw UsageError("--metrics and --trace name the same file; give each its own");
  }
  if (!options.output_path.empty() &&
      (options.output_path == options.metrics_path || options.output_path == options.trace_path)) {
    throw UsageError("--output: the same file as of --metrics or --trace; give each its own");
  }
  if (!options.json_path.empty() &&
      (options.json_path == options.metrics_path || options.json_path == options.trace_path)) {
    throw UsageError("--json: the same file as of --metrics or --trace; give each its own");
  }
  if (options.command == Command::kBench && options.profile && options.check) {
    throw UsageError("--profile and --check exclude each other; checked operations take another time");
  }
  if (options.command == Command::kBench && options.replicas > 1) {
    throw UsageError(fmt::format("{}: replicas: bench measures one pipeline; leave them out", options.run_file.path));
  }
  const auto& stages = options.run_file.stages;
  if (options.check && (options.memory_per_rank || (stages && std::ranges::any_of(*stages, [](const StageSpec& stage) {
                                                      return stage.memory_bytes.has_value();
                                                    })))) {
    throw UsageError("--check: the reference takes memory beside any budget; leave out --memory-per-rank and memory");
  }
  if (options.command == Command::kScore) {
    if (!options.text_paths.empty() && !options.prompts_path.empty()) {
      throw UsageError("--text and --prompts exclude each other; give one of them");
    }
    if (options.text_paths.empty() && options.prompts_path.empty()) {
      throw UsageError("no text; give --text FILE, or --prompts FILE with a text per line (- is standard input)");
    }
  }
  if (options.command == Command::kConvert) {
    if (options.output_path.empty()) {
      throw UsageError("--output: missing; name the model file to write, as in --output model.h5");
    }
    if (options.layout == NativeLayout::kRows && options.dtype == DType::kInt8) {
      throw UsageError("--layout: rows cannot hold int8 weights; leave it out");
    }
  }
  if (options.command == Command::kPlan && options.context && options.plan_new_tokens &&
      *options.plan_new_tokens > *options.context) {
    throw UsageError(fmt::format("--new-tokens {} is more than --context {}, which counts them too",
                                 *options.plan_new_tokens, *options.context));
  }
  if (options.command == Command::kProfile && options.output_path.empty()) {
    throw UsageError("--output: missing; name the machine file to write, as in --output machine.yaml");
  }
  if (options.command != Command::kGenerate) return;
  if (!options.prompt_texts.empty() && !options.prompts_path.empty()) {
    throw UsageError("--prompt and --prompts exclude each other; give one of them");
  }
  if (options.prompt_texts.empty() && options.prompts_path.empty()) {
    throw UsageError("no prompt; give --prompt TEXT, --prompts FILE, or --prompts - for standard input");
  }
  if (options.logprobs && options.output_path.empty()) {
    throw UsageError("--logprobs: needs --output FILE.jsonl or FILE.h5, where they are written");
  }
}

void take_operands(std::vector<std::string> rest, Options& options) {
  if (options.command == Command::kTokenize) {
    options.files = rest.empty() ? std::vector<std::string>{"-"} : std::move(rest);
    return;
  }
  if (rest.empty()) return;
  if (options.command == Command::kSlurm && rest.size() == 1) {
    if (rest.front() == "generate" || rest.front() == "score") {
      options.job = rest.front() == "score" ? Command::kScore : Command::kGenerate;
      return;
    }
    throw UsageError(fmt::format("{}: not a command that batch jobs run; give generate or score", shown(rest.front())));
  }
  if (options.command == Command::kSlurm) rest.erase(rest.begin());
  const char* hint = options.command == Command::kGenerate ? "; a prompt is given with --prompt TEXT, in quotes" : "";
  throw UsageError(fmt::format("{}: unexpected argument{}", shown(rest.front()), hint));
}

}  // namespace

std::variant<Options, HelpText> parse_command_line(const std::vector<std::string>& arguments,
                                                   const std::vector<std::string>& features,
                                                   const RunFileReader& reader) {
  if (arguments.empty()) throw UsageError("no command; see stagecoach --help");
  const std::string& first = arguments.front();
  if (first == "--help" || first == "-h" || first == "help") return HelpText{general_help()};
  if (first == "--version") return HelpText{version_text(features) + "\n"};

  const CommandSpec& command = find_command(first);
  const std::vector<std::string> tail(arguments.begin() + 1, arguments.end());
  Split split = split_arguments(with_empty_values(tail, command.command), command.command);
  if (split.values.contains("help")) return HelpText{command_help(command)};
  if (split.values.contains("version")) return HelpText{version_text(features) + "\n"};

  Options options;
  options.command = command.command;
  if (const auto config = split.values.find("config"); config != split.values.end()) {
    if (config->second.size() > 1) throw UsageError("--config: given several times; there is one run file");
    options.run_file = reader(config->second.front());
    apply_run_file(split.values, options);
  }
  settle_stages(split.values, options);
  apply_arguments(split.values, options);
  take_operands(std::move(split.rest), options);
  require_consistent(options);
  return options;
}

std::string version_text(const std::vector<std::string>& features) {
  const std::string list = features.empty() ? std::string() : fmt::format(" ({})", fmt::join(features, "; "));
  return fmt::format("stagecoach {}{}", kVersion, list);
}

}  // namespace stagecoach
