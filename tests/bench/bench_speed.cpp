// The program's end-to-end speed as ratios to ceilings measured in the same run, and two ranks against one.
//
//   bench_speed [--model synthetic:gpt2-xl] [--dtypes float32,float16,bfloat16,int8] [--repeat 3] [--batches 1,4,16]
//               [--many 16,32] [--split 25] [--no-pipeline] [--no-single] [--no-many]
//
// Every repetition measures the ceilings before and after the program, in turn, so that a noisy machine disturbs them
// alike; ratios are taken within a repetition and medians over repetitions are printed, and the best of all.
//   decode   bytes that one step reads (matrices of blocks and LM head, KV pages) times tokens/s, over the read
//   bandwidth many     multiply-adds of a decode step of many sequences, over a register-only multiply-add loop prefill
//   multiply-adds of blocks and causal attention times tokens/s, over a register-only multiply-add loop pipeline 2b
//   sequences on 2 ranks x 1 thread over b sequences on 1 rank x 2 threads: equal rows per microbatch
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdlib>
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
  std::string model = "synthetic:gpt2-xl";
  std::vector<std::string> dtypes{"float32", "float16", "bfloat16", "int8"};
  std::vector<int> batches{1, 4, 16};
  std::vector<int> many{16, 32};
  int repeat = 3;
  int split = 25;  // blocks of the first of two ranks: the second also has the LM head
  bool single = true, many_sequences = true, pipeline = true;
};

constexpr int kPromptTokens = 512;      // one rank
constexpr int kShortPromptTokens = 16;  // where decoding is compared, prompts only fill the cache
constexpr int kNewTokens = 17;

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
double prefill_flops(const ModelConfig& c) {
  const double head = static_cast<double>(c.vocab_size) * c.n_embd;
  const double attention = 4.0 * c.n_embd * c.n_layer * (kPromptTokens + 1) / 2.0;
  return 2.0 * (step_parameters(c) - head) + 2.0 * head / kPromptTokens + attention;
}

double bytes_per_weight(const std::string& dtype) {
  if (dtype == "int8") return 1.0 + 4.0 / stagecoach::kInt8Group;
  return dtype == "float32" ? 4.0 : 2.0;
}

// Keys and values (float32) of the positions before the middle one of those generated.
double kv_bytes(const ModelConfig& c) {
  return 2.0 * 4.0 * c.n_embd * c.n_layer * (kPromptTokens + kNewTokens / 2.0);
}

// Values of one quantity over repetitions, with the ceiling of each.
struct Series {
  std::vector<double> values, ceilings;

  void add(double value, double ceiling) {
    values.push_back(value);
    ceilings.push_back(ceiling);
  }
  double median_ratio() const {
    std::vector<double> ratios;
    for (std::size_t i = 0; i < values.size(); ++i) ratios.push_back(values[i] / ceilings[i]);
    return median(ratios);
  }
  double best_ratio() const { return std::ranges::max(values) / std::ranges::max(ceilings); }
};

void measure_single(const Settings& s, const ModelConfig& config, stagecoach::bench::Ceilings& ceilings) {
  fmt::print("\none rank x 2 threads, batch 1, {} prompt tokens; medians of {}\n", kPromptTokens, s.repeat);
  fmt::print("{:<10} {:>14} {:>8} {:>8} {:>6} {:>15} {:>10} {:>8} {:>6}\n", "dtype", "decode tok/s", "GB/s", "of read",
             "best", "prefill tok/s", "GFLOP/s", "of FMA", "best");
  std::vector<Series> decode(s.dtypes.size());
  std::vector<Series> prefill(s.dtypes.size());
  const auto bytes = [&](std::size_t d) {
    return step_parameters(config) * bytes_per_weight(s.dtypes[d]) + kv_bytes(config);
  };
  for (int r = 0; r < s.repeat; ++r) {
    for (std::size_t d = 0; d < s.dtypes.size(); ++d) {
      const double read = ceilings.read_bytes_per_s();
      const double fma = ceilings.multiply_add_flops_per_s();
      const Rates rates = run("", model_of(s, s.dtypes[d]) + " --threads 2 --batch 1", kPromptTokens);
      decode[d].add(rates.decode * bytes(d), std::max(read, ceilings.read_bytes_per_s()));
      prefill[d].add(rates.prefill * prefill_flops(config), std::max(fma, ceilings.multiply_add_flops_per_s()));
    }
  }
  for (std::size_t d = 0; d < s.dtypes.size(); ++d) {
    const double decoded = median(decode[d].values);
    const double filled = median(prefill[d].values);
    fmt::print("{:<10} {:>14.2f} {:>8.1f} {:>8.2f} {:>6.2f} {:>15.1f} {:>10.0f} {:>8.2f} {:>6.2f}\n", s.dtypes[d],
               decoded / bytes(d), decoded / 1e9, decode[d].median_ratio(), decode[d].best_ratio(),
               filled / prefill_flops(config), filled / 1e9, prefill[d].median_ratio(), prefill[d].best_ratio());
  }
  std::fflush(stdout);
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
        decode[d].add(rates.decode * flops, std::max(fma, ceilings.multiply_add_flops_per_s()));
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

void measure_pipeline(const Settings& s, const ModelConfig& config) {
  const auto run_file = std::filesystem::temp_directory_path() / "stagecoach-bench-speed.yaml";
  std::ofstream(run_file) << fmt::format(
      "pipeline:\n  stages:\n    - {{blocks: [0, {}]}}\n    - {{blocks: [{}, {}]}}\n", s.split - 1, s.split,
      config.n_layer - 1);
  const std::string launcher =
      fmt::format("OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 {} -n 2 ", STAGECOACH_MPIEXEC);
  fmt::print(
      "\ndecode, float16, 2b sequences on 2 ranks x 1 thread ({} + {} blocks) over b on 1 rank x 2 threads; medians of "
      "{}\n",
      s.split, config.n_layer - s.split, s.repeat);
  fmt::print("{:<4} {:>17} {:>17} {:>7}\n", "b", "1 rank tok/s", "2 ranks tok/s", "ratio");
  for (const int b : s.batches) {
    std::vector<double> d1, d2, d;
    for (int r = 0; r < s.repeat; ++r) {
      const Rates one =
          run("", fmt::format("{} --threads 2 --batch {}", model_of(s, "float16"), b), kShortPromptTokens);
      const Rates two =
          run(launcher,
              fmt::format("{} --threads 1 --batch {} --config {}", model_of(s, "float16"), 2 * b, run_file.string()),
              kShortPromptTokens);
      d1.push_back(one.decode);
      d2.push_back(two.decode);
      d.push_back(two.decode / one.decode);
    }
    fmt::print("{:<4} {:>17.2f} {:>17.2f} {:>7.2f}\n", b, median(d1), median(d2), median(d));
    std::fflush(stdout);
  }
  std::filesystem::remove(run_file);
}

std::vector<std::string> split_list(const std::string& text) {
  std::vector<std::string> parts;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, ',');) parts.push_back(part);
  return parts;
}

Settings parse(int argc, char** argv) {
  Settings s;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    const auto value = [&]() -> std::string {
      if (i + 1 >= argc) throw std::runtime_error(option + " needs a value");
      return argv[++i];
    };
    if (option == "--model") {
      s.model = value();
    } else if (option == "--dtypes") {
      s.dtypes = split_list(value());
    } else if (option == "--repeat") {
      s.repeat = std::stoi(value());
    } else if (option == "--split") {
      s.split = std::stoi(value());
    } else if (option == "--batches") {
      s.batches.clear();
      for (const std::string& part : split_list(value())) s.batches.push_back(std::stoi(part));
    } else if (option == "--many") {
      s.many.clear();
      for (const std::string& part : split_list(value())) s.many.push_back(std::stoi(part));
    } else if (option == "--no-many") {
      s.many_sequences = false;
    } else if (option == "--no-pipeline") {
      s.pipeline = false;
    } else if (option == "--no-single") {
      s.single = false;
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
    if (settings.single || settings.many_sequences) {
      stagecoach::bench::Ceilings ceilings(2);
      fmt::print("ceilings, 2 threads: read {:.1f} GB/s, multiply-add {:.0f} GFLOP/s\n",
                 ceilings.read_bytes_per_s() / 1e9, ceilings.multiply_add_flops_per_s() / 1e9);
      if (settings.single) measure_single(settings, config, ceilings);
      if (settings.many_sequences) measure_many(settings, config, ceilings);
    }
    if (settings.pipeline) measure_pipeline(settings, config);
    return 0;
  } catch (const std::exception& e) {
    fmt::print(stderr, "bench_speed: {}\n", e.what());
    return 2;
  }
}
