#include "launch/option_table.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <system_error>

#include "partition/wording.hpp"

namespace stagecoach {
namespace {

constexpr std::int64_t kMaxTokens = kNewTokenBounds.high;
constexpr double kMaxTimeout = 604800.0;  // a week

template <typename T>
std::optional<T> parse(const std::string& text) {
  T value{};
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || rest != end) return std::nullopt;
  return value;
}

std::int64_t whole(const std::string& text, std::int64_t low, std::int64_t high) {
  const auto value = parse<std::int64_t>(text);
  if (!value || *value < low || *value > high) {
    throw UsageError(fmt::format("{} is not a number from {} to {}", shown(text), low, high));
  }
  return *value;
}

std::int32_t count(const std::string& text, std::int64_t low, std::int64_t high) {
  return static_cast<std::int32_t>(whole(text, low, high));
}

std::optional<std::int32_t> count_or_auto(const std::string& text, std::int64_t low, std::int64_t high) {
  if (text == "auto") return std::nullopt;
  const auto value = parse<std::int64_t>(text);
  if (!value || *value < low || *value > high) {
    throw UsageError(fmt::format("{} is not a number from {} to {}, nor auto", shown(text), low, high));
  }
  return static_cast<std::int32_t>(*value);
}

std::int32_t count(const std::string& text, const Bounds<std::int64_t>& bounds) {
  return count(text, bounds.low, bounds.high);
}

double number(const std::string& text, double low, double high) {
  const auto value = parse<double>(text);
  if (!value || !std::isfinite(*value) || *value < low || *value > high) {
    throw UsageError(fmt::format("{} is not a number from {} to {}", shown(text), low, high));
  }
  return *value;
}

bool flag(const std::string& text) {
  if (text == "true") return true;
  if (text == "false") return false;
  throw UsageError(fmt::format("{} is not true or false", shown(text)));
}

// Position of `text` among `names`.
template <std::size_t N>
std::size_t choice(const std::string& text, const std::array<std::string_view, N>& names) {
  std::vector<std::string> known;
  for (std::size_t i = 0; i < N; ++i) {
    if (text == names[i]) return i;
    known.emplace_back(names[i]);
  }
  throw UsageError(fmt::format("{} is not one of {}{}", shown(text), fmt::join(names, ", "), suggestion(text, known)));
}

std::string path(const std::string& text) {
  if (text.empty()) throw UsageError("is empty; give the name of a file");
  return text;
}

void set_device(Options& o, const std::string& v) {
  const std::optional<DeviceWish> device = parse_device(v);
  if (!device) throw UsageError(fmt::format("{} is not auto, cpu, cuda or cuda:N", shown(v)));
  o.device = *device;
}

void set_transport(Options& o, const std::string& v) {
  constexpr std::array kChoices = {TransportChoice::kAuto, TransportChoice::kNccl, TransportChoice::kMpi};
  o.transport = kChoices.at(choice(v, std::array<std::string_view, 3>{"auto", "nccl", "mpi"}));
}

constexpr std::array<std::string_view, 4> kDTypeNames = {"float32", "float16", "bfloat16", "int8"};
constexpr std::array<DType, 4> kDTypes = {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt8};

void set_dtype(Options& o, const std::string& v) {
  o.dtype = kDTypes.at(choice(v, kDTypeNames));
}

void set_layout(Options& o, const std::string& v) {
  const bool rows = choice(v, std::array<std::string_view, 2>{"panels", "rows"}) == 1;
  o.layout = rows ? NativeLayout::kRows : NativeLayout::kPanels;
}

void set_kv_dtype(Options& o, const std::string& v) {
  o.kv_dtype = kDTypes.at(choice(v, std::array<std::string_view, 3>{"float32", "float16", "bfloat16"}));
}

void set_simd(Options& o, const std::string& v) {
  constexpr std::array kChoices = {SimdChoice::kBest, SimdChoice::kAvx2, SimdChoice::kAvx512, SimdChoice::kAvx512Vnni,
                                   SimdChoice::kNeon};
  o.simd = kChoices.at(
      choice(v, std::array<std::string_view, kChoices.size()>{"best", "avx2", "avx512", "avx512vnni", "neon"}));
}

void set_stages(Options& o, const std::string& v) {
  o.stages = count_or_auto(v, 1, 100000);
  o.auto_stages = !o.stages;
}

void set_shard(Options& o, const std::string& v) {
  const std::size_t slash = v.find('/');
  const auto shard = parse<std::int32_t>(v.substr(0, slash));
  const auto shards = slash == std::string::npos ? std::nullopt : parse<std::int32_t>(v.substr(slash + 1));
  if (!shard || !shards || *shards < 1 || *shard < 0 || *shard >= *shards) {
    throw UsageError(fmt::format("{} is not I/N with I from 0 to N-1, as in 0/4", shown(v)));
  }
  o.shard = *shard;
  o.shards = *shards;
}

void set_output(Options& o, const std::string& v) {
  const std::string name = v.substr(v.rfind('/') + 1);
  if (o.command == Command::kConvert) {
    if (!name.ends_with(".h5") || name == ".h5") {
      throw UsageError(fmt::format("{} does not end in .h5; name the model file to write", shown(v)));
    }
    o.output_path = v;
    return;
  }
  if (o.command == Command::kProfile) {
    if (!name.ends_with(".yaml")) throw UsageError(fmt::format("{} does not end in .yaml", shown(v)));
    o.output_path = v;
    return;
  }
  if ((!name.ends_with(".jsonl") && !name.ends_with(".h5")) || name == ".jsonl" || name == ".h5") {
    throw UsageError(
        fmt::format("{} does not end in .jsonl or .h5; leave --output out for text on standard output", shown(v)));
  }
  o.output_path = v;
}

void add_stop(Options& o, const std::string& v) {
  if (v.empty()) throw UsageError("an empty string would stop at once; leave it out");
  if (v.size() > kMaxStopBytes) throw UsageError(fmt::format("longer than {} bytes", kMaxStopBytes));
  o.stop.push_back(v);
}

void set_memory(Options& o, const std::string& v) {
  try {
    o.memory_per_rank = parse_size(v);
  } catch (const PlanError& error) {
    throw UsageError(error.what());
  }
}

constexpr std::size_t kMostChunks = 100000;

// "auto", "256", or lengths by position of the prompt: "512,448,384".
void set_chunks(Options& o, const std::string& v) {
  o.chunks.clear();
  if (v.find(',') == std::string::npos) {
    o.chunk_tokens = count_or_auto(v, 1, 1 << 20);
    return;
  }
  for (std::size_t begin = 0; begin <= v.size();) {
    const std::size_t end = std::min(v.find(',', begin), v.size());
    o.chunks.push_back(count(v.substr(begin, end - begin), 1, 1 << 20));
    if (o.chunks.size() > kMostChunks) throw UsageError(fmt::format("more than {} chunks", kMostChunks));
    begin = end + 1;
  }
  o.chunk_tokens = longest_chunk(o.chunks);
}

// As sbatch takes it: minutes, M:S, H:M:S, D-H, D-H:M or D-H:M:S.
void set_time(Options& o, const std::string& v) {
  const std::size_t dash = v.find('-');
  const std::string rest = dash == std::string::npos ? v : v.substr(dash + 1);
  bool good = dash == std::string::npos || parse<std::int32_t>(v.substr(0, dash)).value_or(-1) >= 0;
  std::int64_t sum = dash == std::string::npos ? 0 : parse<std::int32_t>(v.substr(0, dash)).value_or(0);
  std::size_t parts = 0;
  for (std::size_t begin = 0; begin <= rest.size(); ++parts) {
    const std::size_t end = std::min(rest.find(':', begin), rest.size());
    const auto part = parse<std::int32_t>(rest.substr(begin, end - begin));
    good = good && part && *part >= 0;
    sum += part.value_or(0);
    begin = end + 1;
  }
  if (!good || parts > 3 || sum == 0) {  // no time at all would be no limit
    throw UsageError(
        fmt::format("{} is not a time as Slurm takes it: minutes, hours:minutes:seconds or "
                    "days-hours:minutes:seconds, as in 1-12:00:00",
                    shown(v)));
  }
  o.slurm_time = v;
}

void set_partition(Options& o, const std::string& v) {
  const bool plain = std::ranges::all_of(v, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-' ||
           c == '.' || c == ',';
  });
  if (v.empty() || !plain) throw UsageError(fmt::format("{} is not the name of a partition", shown(v)));
  o.slurm_partition = v;
}

constexpr std::uint8_t kForPrompts = kForGenerate | kForScore;
constexpr std::uint8_t kForRuns = kForPrompts | kForBench | kForPlan | kForProfile;  // a plan is of a run
constexpr std::uint8_t kForAll = kForRuns | kForTokenize | kForConvert;
constexpr std::uint8_t kForEvery = kForAll | kForSlurm;
constexpr std::string_view kModel = "Model";
constexpr std::string_view kInOut = "Prompts and results";
constexpr std::string_view kGeneration = "Generation";
constexpr std::string_view kScoring = "Scoring";
constexpr std::string_view kMeasure = "Measurement";
constexpr std::string_view kPipeline = "Pipeline and devices";
constexpr std::string_view kBatch = "Batch job";
constexpr std::string_view kTalk = "Messages";
constexpr std::string_view kTests = "For tests and debugging";

const OptionSpec kTable[] = {
    {"model", "M", kForAll, kModel,
     "model directory as downloaded, model file of convert, or synthetic:gpt2-xl (also gpt2, gpt2-medium, "
     "gpt2-large; synthetic:gpt2,n_layer=4,seed=3 changes any dimension)",
     false, [](Options& o, const std::string& v) { o.model = path(v); }},
    {"config", "FILE", kForEvery, kModel,
     "run file (YAML) with any of these options; the command line wins. Paths in it "
     "count from the current directory",
     false, [](Options&, const std::string&) {}},
    {"dtype", "D", kForRuns | kForConvert, kModel, "weights as float32, float16, bfloat16 or int8 [as stored]", false,
     set_dtype},
    {"map-weights", "", kForPrompts | kForBench, kModel,
     "use a packed model file in place, without a copy: starts at once, ranks of a machine share the memory; for CPUs, "
     "in the file's dtype, while nobody changes the file",
     false, [](Options& o, const std::string& v) { o.map_weights = flag(v); }},
    {"kv-dtype", "D", kForRuns, kModel, "keys and values as float32, float16 or bfloat16 [float32, on GPUs float16]",
     false, set_kv_dtype},
    {"layout", "panels|rows", kForConvert, kModel,
     "matrices in the file as panels, as they are computed with and load fastest, or as rows, for other programs "
     "(not int8) [panels]",
     false, set_layout},

    {"prompt", "TEXT", kForGenerate, kInOut, "a prompt; may be given several times", true,
     [](Options& o, const std::string& v) { o.prompt_texts.push_back(v); }},
    {"text", "FILE", kForScore, kInOut, "a file that is one text; may be given several times", true,
     [](Options& o, const std::string& v) { o.text_paths.push_back(path(v)); }},
    {"prompts", "FILE|-", kForPrompts, kInOut,
     "prompts or texts from a file: .jsonl with an object per line (\"prompt\" or \"tokens\", optionally \"id\", and "
     "for generate any of \"max_new_tokens\" \"temperature\" \"top_k\" \"top_p\" \"repetition_penalty\" \"seed\" "
     "\"stop\" \"num_samples\"), anything else with one per line; - is standard input, in either form",
     false, [](Options& o, const std::string& v) { o.prompts_path = path(v); }},
    {"output", "FILE", kForPrompts | kForConvert | kForProfile, kInOut,
     "write one JSON object per sample or text to FILE.jsonl, or the same as HDF5 to FILE.h5, complete or not at all "
     "[text on standard output]; of convert: the model file, FILE.h5; of profile: the machine file, FILE.yaml",
     false, set_output},
    {"long-prompt", "error|truncate", kForGenerate, kInOut,
     "a prompt with more tokens than the model has positions is an "
     "error, or loses its first tokens [error]",
     false,
     [](Options& o, const std::string& v) {
       o.truncate_long = choice(v, std::array<std::string_view, 2>{"error", "truncate"}) == 1;
     }},
    {"shard", "I/N", kForPrompts, kInOut, "take every N-th prompt, from the I-th, counted from 0 (job arrays) [0/1]",
     false, set_shard},
    {"fresh", "", kForPrompts, kInOut,
     "start over: what an earlier run of the same command has finished does not count", false,
     [](Options& o, const std::string& v) { o.fresh = flag(v); }},

    {"max-new-tokens", "N", kForGenerate, kGeneration, "most tokens to generate for a prompt [128]", false,
     [](Options& o, const std::string& v) { o.max_new_tokens = count(v, kNewTokenBounds); }},
    {"ignore-eos", "", kForGenerate, kGeneration, "go on after the end-of-text token", false,
     [](Options& o, const std::string& v) { o.ignore_eos = flag(v); }},
    {"logprobs", "", kForGenerate, kGeneration, "give the log-probability of every generated token (in --output)",
     false, [](Options& o, const std::string& v) { o.logprobs = flag(v); }},
    {"temperature", "T", kForGenerate, kGeneration,
     "above 0: draw tokens, from logits divided by T; 0: always the most probable token [0]", false,
     [](Options& o, const std::string& v) {
       o.sampling.temperature = number(v, kTemperatureBounds.low, kTemperatureBounds.high);
     }},
    {"top-k", "K", kForGenerate, kGeneration, "draw from the K most probable tokens only; 0 is off [0]", false,
     [](Options& o, const std::string& v) { o.sampling.top_k = count(v, kTopKBounds); }},
    {"top-p", "P", kForGenerate, kGeneration,
     "then draw from the fewest tokens that together reach probability P; 1 is off [1]", false,
     [](Options& o, const std::string& v) { o.sampling.top_p = number(v, kTopPBounds.low, kTopPBounds.high); }},
    {"repetition-penalty", "R", kForGenerate, kGeneration,
     "first divide the logits of tokens that are there already by R (multiply negative ones); 1 is off [1]", false,
     [](Options& o, const std::string& v) {
       o.sampling.repetition_penalty = number(v, kPenaltyBounds.low, kPenaltyBounds.high);
     }},
    {"seed", "S", kForGenerate, kGeneration,
     "of the random numbers; each prompt without a seed of its own gets a mix of S and its index [0]", false,
     [](Options& o, const std::string& v) {
       o.seed = static_cast<std::uint64_t>(whole(v, kSeedBounds.low, kSeedBounds.high));
     }},
    {"stop", "STR", kForGenerate, kGeneration,
     "end where STR appears in the new text, and leave it out; may be given several times", true, add_stop},
    {"num-samples", "N", kForGenerate, kGeneration, "completions of each prompt [1]", false,
     [](Options& o, const std::string& v) { o.num_samples = count(v, kSampleBounds); }},

    {"stride", "N", kForScore, kScoring,
     "a text longer than the model's positions is scored in windows of that many tokens, each N tokens further "
     "[half the positions]",
     false, [](Options& o, const std::string& v) { o.stride = count(v, 1, kMaxTokens); }},

    {"decode", "", kForTokenize, kInOut, "the other way: token ids, separated by white space, to bytes", false,
     [](Options& o, const std::string& v) { o.decode = flag(v); }},

    {"prompt-tokens", "N", kForBench, kMeasure, "tokens in each prompt [512]", false,
     [](Options& o, const std::string& v) { o.prompt_tokens = count(v, 1, kMaxTokens); }},
    {"new-tokens", "N", kForBench | kForPlan, kMeasure, "tokens to generate for each prompt [64]", false,
     [](Options& o, const std::string& v) { o.plan_new_tokens = o.new_tokens = count(v, 1, kMaxTokens); }},
    {"batch", "N", kForBench | kForPlan, kMeasure, "prompts at a time [1]", false,
     [](Options& o, const std::string& v) { o.batch = count(v, 1, 65536); }},
    {"repeat", "N", kForBench, kMeasure, "measurements to take the median of [3]", false,
     [](Options& o, const std::string& v) { o.repeat = count(v, 1, 10000); }},
    {"json", "FILE", kForBench, kMeasure, "write the figures to FILE as one JSON object", false,
     [](Options& o, const std::string& v) { o.json_path = path(v); }},
    {"profile", "", kForBench, kMeasure,
     "also print, stage by stage, the time that each kind of operation took; measuring costs a little speed", false,
     [](Options& o, const std::string& v) { o.profile = flag(v); }},

    {"context", "N", kForPlan, kMeasure, "positions of each sequence, prompt and new tokens [all that the model has]",
     false, [](Options& o, const std::string& v) { o.context = count(v, 1, kMaxTokens); }},
    {"json", "", kForPlan, kMeasure, "the plan as one JSON object", false,
     [](Options& o, const std::string& v) { o.json = flag(v); }},
    {"write", "FILE", kForPlan, kMeasure, "write a run file that runs the plan (--config FILE)", false,
     [](Options& o, const std::string& v) { o.write_path = path(v); }},
    {"svg", "FILE", kForPlan, kMeasure, "draw the stages' memory and the simulated timeline", false,
     [](Options& o, const std::string& v) { o.svg_path = path(v); }},

    {"time", "TIME", kForSlurm, kBatch,
     "time limit of the job: minutes, hours:minutes:seconds or days-hours:minutes:seconds [the partition's]", false,
     set_time},
    {"partition", "P", kForSlurm, kBatch, "partition to run in [the default one]", false, set_partition},
    {"write", "FILE", kForSlurm, kBatch, "write the batch file to FILE [standard output]", false,
     [](Options& o, const std::string& v) { o.slurm_path = path(v); }},

    {"stages", "N|auto", kForRuns | kForSlurm, kPipeline,
     "pipeline stages: under mpirun as many as there are ranks for each replica; otherwise N stages in "
     "this process [number of ranks]; auto: of plan and slurm as many as are best, of runs the default",
     false, set_stages},
    {"replicas", "N", kForPrompts | kForPlan | kForSlurm, kPipeline,
     "pipelines that share the prompts: under mpirun replicas x stages are the ranks; otherwise all in this process "
     "[1]",
     false, [](Options& o, const std::string& v) { o.replicas = count(v, 1, 1 << 20); }},
    {"context-shards", "N", kForRuns | kForSlurm, kPipeline,
     "ranks of each stage that share the tokens and KV pages of a prompt: under mpirun replicas x stages x N are the "
     "ranks; otherwise all in this process [1]",
     false, [](Options& o, const std::string& v) { o.context_shards = count(v, 1, 4096); }},
    {"threads", "N|auto", kForRuns, kPipeline, "threads of each rank [auto: its share of the cores]", false,
     [](Options& o, const std::string& v) { o.threads = count_or_auto(v, 1, 4096); }},
    {"chunk-tokens", "N|N,N,...|auto", kForRuns, kPipeline,
     "most prompt tokens that travel together, or the lengths of a prompt's chunks in order, the last one repeated "
     "[auto: planned, at most 256; on GPUs 2048, or planned with --machine]",
     false, set_chunks},
    {"in-flight", "N|auto", kForRuns, kPipeline,
     "microbatches in the pipeline at once [auto: one per stage, with many prompts half as many more]", false,
     [](Options& o, const std::string& v) { o.in_flight = count_or_auto(v, 1, 4096); }},
    {"memory-per-rank", "SIZE", kForRuns, kPipeline,
     "most memory that a rank may take, with everything: bytes, or a whole number with KiB, MiB or GiB; on a GPU, of "
     "the GPU's [its share of what is free on its host or GPU]",
     false, set_memory},
    {"device", "auto|cpu|cuda|cuda:N", kForRuns, kPipeline,
     "where to compute: a GPU of its own for each rank, or GPU N for all [auto: GPUs where there are any]", false,
     set_device},
    {"transport", "auto|nccl|mpi", kForRuns, kPipeline,
     "how ranks exchange activations: from GPU to GPU, or through the hosts [auto: nccl where each rank has a GPU of "
     "its own]",
     false, set_transport},
    {"timeout", "SECONDS", kForRuns, kPipeline, "longest silence of another rank before giving up [60]", false,
     [](Options& o, const std::string& v) { o.timeout_s = number(v, 0.1, kMaxTimeout); }},
    {"deterministic", "", kForRuns, kPipeline,
     "on GPUs too the same bits for every layout, at some cost; on CPUs they always are", false,
     [](Options& o, const std::string& v) { o.deterministic = flag(v); }},
    {"machine", "FILE", kForPlan | kForPrompts | kForBench, kPipeline,
     "machine file of profile: how fast the devices are, to balance stages by [assumed]", false,
     [](Options& o, const std::string& v) { o.machine_path = path(v); }},
    {"metrics", "FILE", kForPrompts | kForBench, kTalk,
     "write figures of the run to FILE at its end, as one JSON object: tokens, latencies, what each rank did, waited "
     "and took",
     false, [](Options& o, const std::string& v) { o.metrics_path = path(v); }},
    {"trace", "FILE", kForPrompts | kForBench, kTalk,
     "write what every stage did and when to FILE, for Perfetto or chrome://tracing (JSON)", false,
     [](Options& o, const std::string& v) { o.trace_path = path(v); }},

    {"quiet", "", kForEvery, kTalk, "no progress messages", false,
     [](Options& o, const std::string& v) { o.quiet = flag(v); }},
    {"verbose", "", kForEvery, kTalk, "say more about what happens", false,
     [](Options& o, const std::string& v) { o.verbose = flag(v); }, 'v'},
    {"help", "", kForEvery, kTalk, "this text", false, [](Options&, const std::string&) {}, 'h'},
    {"version", "", kForEvery, kTalk, "version and features of this build", false, [](Options&, const std::string&) {}},

    {"simd", "NAME", kForRuns, kTests, "instructions to use: best, avx2, avx512, avx512vnni or neon [best]", false,
     set_simd},
    {"check", "", kForRuns, kTests, "run every operation against the slow reference as well and compare", false,
     [](Options& o, const std::string& v) { o.check = flag(v); }},
};

}  // namespace

std::span<const OptionSpec> option_table() {
  return kTable;
}

const OptionSpec* find_option(std::string_view name, Command command) {
  const OptionSpec* found = nullptr;
  for (const OptionSpec& spec : kTable) {
    if (spec.name != name) continue;
    if ((spec.commands & bit_of(command)) != 0) return &spec;
    if (found == nullptr) found = &spec;
  }
  return found;
}

}  // namespace stagecoach
