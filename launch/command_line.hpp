// What the user asked for: the command line merged with the run file, typed and checked.
//
// A pure function of the arguments and of a reader of run files: prints nothing, exits never, knows no MPI.
// The command line wins over the run file. Everything that can be known without the model is checked here,
// and an option whose meaning comes in a later version is refused unless it has its neutral value: no option
// is silently ignored.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

#include "kernels/tensor.hpp"
#include "partition/plan.hpp"
#include "partition/run_file.hpp"
#include "runtime/native_model.hpp"
#include "runtime/request.hpp"

namespace stagecoach {

// What was asked for cannot be: which option, what is wrong, what would work. Exit status 2.
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

enum class Command : std::uint8_t { kGenerate, kTokenize, kBench, kConvert, kScore, kPlan, kProfile, kSlurm };
enum class TransportChoice : std::uint8_t { kAuto, kMpi, kNccl };
enum class SimdChoice : std::uint8_t { kBest, kAvx2, kAvx512, kAvx512Vnni, kNeon };

// Fields of options that the command does not have keep their defaults, or what the run file says.
struct Options {
  Command command = Command::kGenerate;
  std::string model;
  RunFile run_file;  // path is empty without --config; `stages` is the list to follow, unset when --stages
                     // was given

  // Common: empty means the default that only the model, the machine or the number of ranks can tell
  // ("auto").
  DeviceWish device;              // of every stage for which the run file names none
  std::optional<DType> dtype;     // as stored
  bool map_weights = false;       // used in the file, of generate, score and bench
  std::optional<DType> kv_dtype;  // float32 on CPU, float16 on CUDA
  bool deterministic = false;     // on CUDA; CPUs always are
  std::optional<std::int32_t> stages;
  std::optional<std::int32_t> threads;
  std::int32_t replicas = 1;                 // pipelines that share the prompts
  std::int32_t context_shards = 1;           // ranks of each stage, which share the tokens of a prompt
  bool auto_stages = false;                  // --stages auto: as many as are best
  std::optional<std::int32_t> chunk_tokens;  // the longest of `chunks`, if they are given
  ChunkPlan chunks;                          // lengths by position of the prompt
  std::optional<std::int32_t> in_flight;
  std::optional<std::int64_t> memory_per_rank;  // of stages for which the run file says nothing else
  TransportChoice transport = TransportChoice::kAuto;
  double timeout_s = 60.0;
  std::string metrics_path;  // of generate, score and bench; empty: no file
  std::string trace_path;    // likewise
  bool quiet = false;
  bool verbose = false;
  SimdChoice simd = SimdChoice::kBest;  // for tests
  bool check = false;                   // run every operation against the reference as well

  // generate and score. Exactly one of `prompt_texts` (generate), `text_paths` (score) and `prompts_path` is set.
  std::vector<std::string> prompt_texts;
  std::vector<std::string> text_paths;
  std::string prompts_path;  // "-" is standard input
  std::string output_path;   // empty: text on standard output; otherwise ends in ".jsonl" or ".h5"
  std::int32_t max_new_tokens = 128;
  SamplingOptions sampling;
  std::uint64_t seed = 0;
  std::int32_t num_samples = 1;
  std::vector<std::string> stop;
  bool ignore_eos = false;
  bool logprobs = false;
  bool truncate_long = false;
  bool fresh = false;      // what an earlier run of the job has finished does not count
  std::int32_t shard = 0;  // --shard I/N
  std::int32_t shards = 1;

  // score
  std::optional<std::int32_t> stride;  // half the model's positions

  // tokenize
  bool decode = false;
  std::vector<std::string> files;  // at least one; "-" is standard input

  // convert
  NativeLayout layout = NativeLayout::kPanels;

  // bench
  std::int32_t prompt_tokens = 512;
  std::int32_t new_tokens = 64;
  std::int32_t batch = 1;
  std::int32_t repeat = 3;
  std::string json_path;  // empty: no file
  bool profile = false;

  // plan; also `batch`, and `new_tokens` when given
  std::string machine_path;             // speeds and memory of the devices; empty: assumed
  std::optional<std::int32_t> context;  // positions of each sequence; all of the model's
  std::optional<std::int32_t> plan_new_tokens;
  bool json = false;       // the plan as JSON on standard output
  std::string write_path;  // run file to write; empty: none
  std::string svg_path;    // drawing to write

  // slurm
  std::optional<Command> job;   // what is to run, generate or score; unset: what the run file has input for
  std::string slurm_time;       // as Slurm takes it; empty: the partition's
  std::string slurm_partition;  // empty: the default one
  std::string slurm_path;       // file to write; empty: standard output
};

// For standard output, status 0.
struct HelpText {
  std::string text;
};

using RunFileReader = std::function<RunFile(const std::string& path)>;

// `arguments` without the program's name. `features` is for --version. Throws UsageError, and PlanError from
// `read_run_file`.
std::variant<Options, HelpText> parse_command_line(const std::vector<std::string>& arguments,
                                                   const std::vector<std::string>& features,
                                                   const RunFileReader& reader = read_run_file);

// "stagecoach 0.1.0 (CPU: AVX2; CUDA: no)" for the features {"CPU: AVX2", "CUDA: no"}.
std::string version_text(const std::vector<std::string>& features);

}  // namespace stagecoach
