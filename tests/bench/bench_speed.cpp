// The program's end-to-end speed as ratios to ceilings measured in the same run, and two ranks against one.
//
//   bench_speed [--parts single,many,pipeline,long] [--model synthetic:gpt2-xl] [--repeat 3]
//               [--dtypes float32,float16,bfloat16,int8] [--prompts 512,896] [--many 16,32] [--batches 1,4,16]
//               [--split 25] [--prefill-split 24] [--long-model synthetic:...] [--long-tokens 65536]
//
// Every repetition measures the ceilings before and after the program, in turn, so that a noisy machine disturbs them
// alike; printed are the medians of the program, their ratios to the medians of the ceilings, and the best over the best.
// Bytes and operations are the fewest that the arithmetic needs.
//   single    one sequence on one rank x 2 threads. Decode: bytes that one step reads (matrices of blocks and LM head,
//             keys and values) times tokens/s, over the read bandwidth. Prefill: operations of blocks and causal
//             attention times tokens/s, over a register-only multiply-add loop
//   many      decode of many sequences: operations of a step, over the multiply-add loop
//   pipeline  2b sequences on 2 ranks x 1 thread over b sequences on 1 rank x 2 threads: equal rows per microbatch
//   long      the same as single for a small model and a prompt so long that nearly all of it is attention
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/int8.hpp"
#include "runtime/json.hpp"
#include "runtime/weight_source.hpp"
#include "tests/bench/ceilings.hpp"

namespace {

using stagecoach::Json;
using stagecoach::ModelConfig;

struct Settings {
  std::vector<std::string> parts{"single", "many", "pipeline", "long"};
  std::string model = "synthetic:gpt2-xl";
  std::vector<std::string> dtypes{"float32", "float16", "bfloat16", "int8"};
  std::vector<int> prompts{512, 896};
  std::vector<int> batches{1, 4, 16};
  std::vector<int> many{16, 32};
  int repeat = 3;
  // Blocks of the first of two ranks. The second also has the LM head, which prefill needs only for the last token.
  int split = 25, prefill_split = 24;
  std::string long_model = "synthetic:gpt2,n_layer=1,n_embd=256,n_head=4,vocab_size=1024,n_positions=65664";
  int long_tokens = 65536;

  bool has(const std::string& part) const { return std::ranges::find(parts, part) != parts.end(); }
};

constexpr int kShortPromptTokens = 16;  // where decoding is compared, prompts only fill the cache
constexpr int kNewTokens = 17;
// Prefill of two ranks: so many microbatches of so many rows that filling and emptying the pipeline costs 3 %.
constexpr int kPipelineSequences = 4, kPipelineTokens = 512, kPipelineChunk = 64;

struct Rates {
  double prefill = 0.0, decode = 0.0;  // tokens/s
};

double median(std::vector<double> values) {
  std::ranges::sort(values);
  const std::size_t n = values.size();
  return n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

double median_of(const Json& root, const char* field) {
  const Json* value = root.find(field) == nullptr ? nullptr : root.find(field)->find("median");
  if (value == nullptr) throw std::runtime_error(fmt::format("bench --json gives no {}", field));
  return value->real() != nullptr ? *value->real() : static_cast<double>(*value->integer());
}

Rates run(const std::string& launcher, const std::string& arguments, int prompt_tokens) {
  const std::string json = (std::filesystem::temp_directory_path() / "stagecoach-bench-speed.json").string();
  const std::string command =
      fmt::format("{}{} bench --quiet --repeat 1 --prompt-tokens {} --new-tokens {} --json {} {} >/dev/null", launcher,
                  STAGECOACH_PROGRAM, prompt_tokens, kNewTokens, json, arguments);
  if (std::system(command.c_str()) != 0) throw std::runtime_error("failed: " + command);
  std::ifstream file(json);
  const Json root = stagecoach::parse_json(std::string{std::istreambuf_iterator<char>(file), {}});
  std::filesystem::remove(json);
  return {median_of(root, "prefill_tokens_per_s"), median_of(root, "decode_tokens_per_s")};
}

std::string model_of(const Settings& s, const std::string& dtype) {
  return fmt::format("--model {},dtype={} --dtype {}", s.model, dtype == "int8" ? "float16" : dtype, dtype);
}

// Parameters in the matrices that a decode step reads.
double step_parameters(const ModelConfig& c) {
  double count = static_cast<double>(c.vocab_size) * c.n_embd;
  for (const stagecoach::TensorSpec& t : stagecoach::tensor_table(c)) {
    if (t.place == stagecoach::TensorPlace::kBlock && !t.is_vector) count += static_cast<double>(t.elements());
  }
  return count;
}

// Floating-point operations per prompt token, the LM head of the last one spread over all.
double prefill_flops(const ModelConfig& c, int tokens) {
  const double head = static_cast<double>(c.vocab_size) * c.n_embd;
  const double attention = 4.0 * c.n_embd * c.n_layer * (tokens + 1) / 2.0;
  return 2.0 * (step_parameters(c) - head) + 2.0 * head / tokens + attention;
}

double bytes_per_weight(const std::string& dtype) {
  if (dtype == "int8") return 1.0 + 4.0 / stagecoach::kInt8Group;
  return dtype == "float32" ? 4.0 : 2.0;
}

// What one decode step reads: matrices, and keys and values (float32) of the positions before the middle one of those
// generated.
double step_bytes(const ModelConfig& c, const std::string& dtype, int prompt_tokens) {
  return step_parameters(c) * bytes_per_weight(dtype) +
         2.0 * 4.0 * c.n_embd * c.n_layer * (prompt_tokens + kNewTokens / 2.0);
}

// Values of one quantity over repetitions, with the ceiling before and after each.
struct Series {
  std::vector<double> values, ceilings;

  void add(double value, double before, double after) {
    values.push_back(value);
    ceilings.insert(ceilings.end(), {before, after});
  }
  double median_ratio() const { return median(values) / median(ceilings); }
  double best_ratio() const { return std::ranges::max(values) / std::ranges::max(ceilings); }
};

struct SingleFigures {
  Series decode, prefill;  // bytes/s, operations/s
};

// One sequence on 1 rank x 2 threads: `arguments` are those of one model and dtype.
void run_single(const ModelConfig& config, const std::string& arguments, const std::string& dtype, int tokens,
                stagecoach::bench::Ceilings& ceilings, SingleFigures& figures) {
  const double read = ceilings.read_bytes_per_s();
  const double fma = ceilings.multiply_add_flops_per_s();
  const Rates rates = run("", arguments + " --threads 2 --batch 1", tokens);
  figures.decode.add(rates.decode * step_bytes(config, dtype, tokens), read, ceilings.read_bytes_per_s());
  figures.prefill.add(rates.prefill * prefill_flops(config, tokens), fma, ceilings.multiply_add_flops_per_s());
}

void print_single(const ModelConfig& config, const std::string& dtype, int tokens, const SingleFigures& f) {
  const double decoded = median(f.decode.values);
  const double filled = median(f.prefill.values);
  fmt::print("{:<10} {:>7} {:>14.2f} {:>8.1f} {:>8.2f} {:>6.2f} {:>15.1f} {:>10.0f} {:>8.2f} {:>6.2f}\n", dtype, tokens,
             decoded / step_bytes(config, dtype, tokens), decoded / 1e9, f.decode.median_ratio(), f.decode.best_ratio(),
             filled / prefill_flops(config, tokens), filled / 1e9, f.prefill.median_ratio(), f.prefill.best_ratio());
  std::fflush(stdout);
}

void print_single_header(const std::string& what, int repeat) {
  fmt::print("\n{}, one rank x 2 threads, one sequence; medians of {}\n", what, repeat);
  fmt::print("{:<10} {:>7} {:>14} {:>8} {:>8} {:>6} {:>15} {:>10} {:>8} {:>6}\n", "dtype", "prompt", "decode tok/s",
             "GB/s", "of read", "best", "prefill tok/s", "GFLOP/s", "of FMA", "best");
}

void measure_single(const Settings& s, const ModelConfig& config, stagecoach::bench::Ceilings& ceilings) {
  print_single_header(s.model, s.repeat);
  for (const int tokens : s.prompts) {
    std::vector<SingleFigures> figures(s.dtypes.size());
    for (int r = 0; r < s.repeat; ++r) {
      for (std::size_t d = 0; d < s.dtypes.size(); ++d) {
        run_single(config, model_of(s, s.dtypes[d]), s.dtypes[d], tokens, ceilings, figures[d]);
      }
    }
    for (std::size_t d = 0; d < s.dtypes.size(); ++d) print_single(config, s.dtypes[d], tokens, figures[d]);
  }
}

void measure_long(const Settings& s, stagecoach::bench::Ceilings& ceilings) {
  const ModelConfig config = stagecoach::open_model(s.long_model).config;
  print_single_header(s.long_model, s.repeat);
  SingleFigures figures;
  for (int r = 0; r < s.repeat; ++r) {
    run_single(config, fmt::format("--model {},dtype=float32", s.long_model), "float32", s.long_tokens, ceilings,
               figures);
  }
  print_single(config, "float32", s.long_tokens, figures);
}

void measure_many(const Settings& s, const ModelConfig& config, stagecoach::bench::Ceilings& ceilings) {
  fmt::print("\ndecode of many sequences, one rank x 2 threads; medians of {}\n", s.repeat);
  fmt::print("{:<10} {:>9} {:>14} {:>10} {:>8} {:>6}\n", "dtype", "sequences", "decode tok/s", "GFLOP/s", "of FMA",
             "best");
  const double flops = 2.0 * step_parameters(config);
  for (const int batch : s.many) {
    std::vector<Series> decode(s.dtypes.size());
    for (int r = 0; r < s.repeat; ++r) {
      for (std::size_t d = 0; d < s.dtypes.size(); ++d) {
        const double fma = ceilings.multiply_add_flops_per_s();
        const Rates rates =
            run("", fmt::format("{} --threads 2 --batch {}", model_of(s, s.dtypes[d]), batch), kShortPromptTokens);
        decode[d].add(rates.decode * flops, fma, ceilings.multiply_add_flops_per_s());
      }
    }
    for (std::size_t d = 0; d < s.dtypes.size(); ++d) {
      fmt::print("{:<10} {:>9} {:>14.2f} {:>10.0f} {:>8.2f} {:>6.2f}\n", s.dtypes[d], batch,
                 median(decode[d].values) / flops, median(decode[d].values) / 1e9, decode[d].median_ratio(),
                 decode[d].best_ratio());
    }
    std::fflush(stdout);
  }
}

// Two ranks x 1 thread over one rank x 2 threads.
class PipelineComparison {
 public:
  PipelineComparison(const Settings& s, const ModelConfig& config, int split)
      : s_(s), run_file_(std::filesystem::temp_directory_path() / "stagecoach-bench-speed.yaml") {
    std::ofstream(run_file_) << fmt::format(
        "pipeline:\n  stages:\n    - {{blocks: [0, {}]}}\n    - {{blocks: [{}, {}]}}\n", split - 1, split,
        config.n_layer - 1);
  }
  ~PipelineComparison() { std::filesystem::remove(run_file_); }

  // Prints one row of the table: `sequences` on one rank, twice as many on two.
  void row(const std::string& name, int sequences, int prompt_tokens, const std::string& arguments,
           double Rates::*rate) const {
    const std::string launcher =
        fmt::format("OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 {} -n 2 ", STAGECOACH_MPIEXEC);
    const std::string all = fmt::format("{} {}", model_of(s_, "float16"), arguments);
    std::vector<double> ones, twos, ratios;
    for (int r = 0; r < s_.repeat; ++r) {
      const Rates one = run("", fmt::format("{} --threads 2 --batch {}", all, sequences), prompt_tokens);
      const Rates two =
          run(launcher, fmt::format("{} --threads 1 --batch {} --config {}", all, 2 * sequences, run_file_.string()),
              prompt_tokens);
      ones.push_back(one.*rate);
      twos.push_back(two.*rate);
      ratios.push_back(two.*rate / one.*rate);
    }
    fmt::print("{:<12} {:>4} {:>17.2f} {:>17.2f} {:>7.2f}\n", name, sequences, median(ones), median(twos),
               median(ratios));
    std::fflush(stdout);
  }

 private:
  const Settings& s_;
  std::filesystem::path run_file_;
};

void measure_pipeline(const Settings& s, const ModelConfig& config) {
  fmt::print(
      "\n{}, float16, 2b sequences on 2 ranks x 1 thread over b on 1 rank x 2 threads; medians of {}\n"
      "blocks {} + {} for decode, {} + {} for prefill ({} prompts of {} tokens on 2 ranks, {} rows per microbatch)\n",
      s.model, s.repeat, s.split, config.n_layer - s.split, s.prefill_split, config.n_layer - s.prefill_split,
      2 * kPipelineSequences, kPipelineTokens, kPipelineChunk);
  fmt::print("{:<12} {:>4} {:>17} {:>17} {:>7}\n", "", "b", "1 rank tok/s", "2 ranks tok/s", "ratio");
  {
    const PipelineComparison comparison(s, config, s.split);
    for (const int b : s.batches) comparison.row("decode", b, kShortPromptTokens, "", &Rates::decode);
  }
  PipelineComparison(s, config, s.prefill_split)
      .row("prefill", kPipelineSequences / 2, kPipelineTokens, fmt::format("--chunk-tokens {}", kPipelineChunk),
           &Rates::prefill);
}

std::vector<std::string> split_list(const std::string& text) {
  std::vector<std::string> parts;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, ',');) parts.push_back(part);
  return parts;
}

std::vector<int> split_numbers(const std::string& text) {
  std::vector<int> numbers;
  for (const std::string& part : split_list(text)) numbers.push_back(std::stoi(part));
  return numbers;
}

Settings parse(int argc, char** argv) {
  Settings s;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (i + 1 >= argc) throw std::runtime_error(option + " needs a value");
    const std::string value = argv[++i];
    if (option == "--parts") {
      s.parts = split_list(value);
    } else if (option == "--model") {
      s.model = value;
    } else if (option == "--dtypes") {
      s.dtypes = split_list(value);
    } else if (option == "--repeat") {
      s.repeat = std::stoi(value);
    } else if (option == "--prompts") {
      s.prompts = split_numbers(value);
    } else if (option == "--batches") {
      s.batches = split_numbers(value);
    } else if (option == "--many") {
      s.many = split_numbers(value);
    } else if (option == "--split") {
      s.split = std::stoi(value);
    } else if (option == "--prefill-split") {
      s.prefill_split = std::stoi(value);
    } else if (option == "--long-model") {
      s.long_model = value;
    } else if (option == "--long-tokens") {
      s.long_tokens = std::stoi(value);
    } else {
      throw std::runtime_error("unknown option " + option + "; see the top of tests/bench/bench_speed.cpp");
    }
  }
  return s;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Settings settings = parse(argc, argv);
    const ModelConfig config = stagecoach::open_model(settings.model).config;
    if (settings.has("single") || settings.has("many") || settings.has("long")) {
      stagecoach::bench::Ceilings ceilings(2);
      fmt::print("ceilings, 2 threads: read {:.1f} GB/s, multiply-add {:.0f} GFLOP/s\n",
                 ceilings.read_bytes_per_s() / 1e9, ceilings.multiply_add_flops_per_s() / 1e9);
      if (settings.has("single")) measure_single(settings, config, ceilings);
      if (settings.has("many")) measure_many(settings, config, ceilings);
      if (settings.has("long")) measure_long(settings, ceilings);
    }
    if (settings.has("pipeline")) measure_pipeline(settings, config);
    return 0;
  } catch (const std::exception& e) {
    fmt::print(stderr, "bench_speed: {}\n", e.what());
    return 2;
  }
}
