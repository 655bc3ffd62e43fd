#include <doctest/doctest.h>

#include <string>
#include <variant>
#include <vector>

#include "launch/command_line.hpp"
#include "tests/unit/command_words.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

TEST_CASE("defaults of generate") {
  const Options o = options_of(generate({}));
  CHECK(o.command == Command::kGenerate);
  CHECK(o.model == "m");
  CHECK(o.prompt_texts == Words{"p"});
  CHECK(o.prompts_path.empty());
  CHECK(o.output_path.empty());
  CHECK(o.max_new_tokens == 128);
  CHECK(o.timeout_s == 60.0);
  CHECK_FALSE(o.stages);
  CHECK_FALSE(o.threads);
  CHECK_FALSE(o.dtype);
  CHECK_FALSE(o.kv_dtype);
  CHECK(o.shards == 1);
  CHECK(o.run_file.path.empty());
}

TEST_CASE("every option of generate arrives") {
  const Options o = options_of({"generate",
                                "--model=m",
                                "--prompts",
                                "in.jsonl",
                                "--output",
                                "out.jsonl",
                                "--max-new-tokens",
                                "7",
                                "--ignore-eos",
                                "--logprobs",
                                "--long-prompt",
                                "truncate",
                                "--fresh",
                                "--shard",
                                "2/4",
                                "-v",
                                "--timeout",
                                "2.5",
                                "--chunk-tokens",
                                "64",
                                "--in-flight",
                                "3",
                                "--stages",
                                "2",
                                "--device",
                                "cpu",
                                "--dtype",
                                "bfloat16",
                                "--map-weights",
                                "--kv-dtype",
                                "float16",
                                "--threads",
                                "8",
                                "--transport",
                                "mpi",
                                "--simd",
                                "avx2",
                                "--check",
                                "--deterministic"});
  CHECK(o.prompts_path == "in.jsonl");
  CHECK(o.output_path == "out.jsonl");
  CHECK(o.max_new_tokens == 7);
  CHECK(o.ignore_eos);
  CHECK(o.logprobs);
  CHECK(o.truncate_long);
  CHECK(o.fresh);
  CHECK(o.shard == 2);
  CHECK(o.shards == 4);
  CHECK(o.verbose);
  CHECK_FALSE(o.quiet);
  CHECK(o.timeout_s == 2.5);
  CHECK(o.chunk_tokens == 64);
  CHECK(o.in_flight == 3);
  CHECK(o.stages == 2);
  CHECK(o.device.kind == stagecoach::DeviceKind::kCpu);
  CHECK(o.dtype == DType::kBFloat16);
  CHECK(o.map_weights);
  CHECK(o.kv_dtype == DType::kFloat16);
  CHECK(o.threads == 8);
  CHECK(o.transport == stagecoach::TransportChoice::kMpi);
  CHECK(o.simd == stagecoach::SimdChoice::kAvx2);
  CHECK(o.check);
}

TEST_CASE("transports") {
  CHECK(options_of(generate({})).transport == stagecoach::TransportChoice::kAuto);
  CHECK(options_of(generate({"--transport=auto"})).transport == stagecoach::TransportChoice::kAuto);
  CHECK(options_of(generate({"--transport=nccl"})).transport == stagecoach::TransportChoice::kNccl);
  CHECK(error_of(generate({"--transport=ncll"})).find("ncll is not one of auto, nccl, mpi") != std::string::npos);
}

TEST_CASE("auto is the same as nothing") {
  const Options o = options_of(generate({"--threads", "auto", "--chunk-tokens=auto", "--in-flight", "auto"}));
  CHECK_FALSE(o.threads);
  CHECK_FALSE(o.chunk_tokens);
  CHECK_FALSE(o.in_flight);
}

TEST_CASE("chunks may be one length or a list") {
  const Options o = options_of(generate({"--chunk-tokens=300,200,100"}));
  CHECK(o.chunk_tokens == 300);
  CHECK(o.chunks == stagecoach::ChunkPlan{300, 200, 100});
  CHECK(error_of(generate({"--chunk-tokens=300,,100"})) == "--chunk-tokens:  is not a number from 1 to 1048576");
  CHECK(error_of(generate({"--chunk-tokens=300,0"})) == "--chunk-tokens: 0 is not a number from 1 to 1048576");
  CHECK(error_of(generate({"--chunk-tokens=,"})) == "--chunk-tokens:  is not a number from 1 to 1048576");
}

TEST_CASE("plans take the options of runs and some of their own") {
  const Words plan = {"plan",
                      "--model",
                      "m",
                      "--stages=auto",
                      "--context=4096",
                      "--batch=8",
                      "--new-tokens=9",
                      "--json",
                      "--write",
                      "r.yaml",
                      "--svg=d.svg",
                      "--machine=m.yaml",
                      "--dtype=int8",
                      "--kv-dtype=float16",
                      "--memory-per-rank=8GiB"};
  const Options o = options_of(plan);
  CHECK(o.auto_stages);
  CHECK_FALSE(o.stages);
  CHECK(o.context == 4096);
  CHECK(o.batch == 8);
  CHECK(o.plan_new_tokens == 9);
  CHECK(o.json);
  CHECK(o.write_path == "r.yaml");
  CHECK(o.svg_path == "d.svg");
  CHECK(o.machine_path == "m.yaml");
  CHECK(o.memory_per_rank == std::int64_t{8} << 30);
  CHECK(options_of({"bench", "--model", "m", "--json", "f"}).json_path == "f");
  CHECK(error_of({"plan", "--model", "m", "--context=5", "--new-tokens=6"}).starts_with("--new-tokens 6 is more than"));
  CHECK(error_of({"plan", "--model", "m", "--context=0"}).starts_with("--context: 0 is not a number from 1"));
  CHECK(error_of({"profile", "--model", "m"}).starts_with("--output: missing"));
  CHECK(error_of({"profile", "--model", "m", "--output", "x.json"}) == "--output: x.json does not end in .yaml");
}

TEST_CASE("prompts are taken literally") {
  for (const char* prompt :
       {"", " ", "-5", "--model", "-v", "[a,b]", "a=b", "%%", "{}", "a\nb", "\"q\"", "--", "\xff"}) {
    CAPTURE(prompt);
    CHECK(options_of({"generate", "--model", "m", "--prompt", prompt}).prompt_texts == Words{prompt});
    CHECK(options_of({"generate", "--model", "m", std::string("--prompt=") + prompt}).prompt_texts == Words{prompt});
    CHECK(options_of({"generate", "--model", "m", "--prompt", prompt, "--prompt", "x", "--ignore-eos"}).prompt_texts ==
          Words{prompt, "x"});
  }
}

TEST_CASE("tokenize and bench") {
  CHECK(options_of({"tokenize", "--model", "m"}).files == Words{"-"});
  const Options t = options_of({"tokenize", "a.txt", "--decode", "--model", "m", "-", "--", "-b"});
  CHECK(t.files == Words{"a.txt", "-", "-b"});
  CHECK(t.decode);
  const Options b = options_of({"bench", "--model", "m", "--prompt-tokens", "16", "--new-tokens", "4", "--batch", "2",
                                "--repeat", "5", "--json", "b.json"});
  CHECK(b.command == Command::kBench);
  CHECK(b.prompt_tokens == 16);
  CHECK(b.new_tokens == 4);
  CHECK(b.batch == 2);
  CHECK(b.repeat == 5);
  CHECK(b.json_path == "b.json");
  CHECK_FALSE(b.profile);
  CHECK(options_of({"bench", "--model", "m"}).repeat == 3);
  CHECK(options_of({"bench", "--model", "m", "--profile"}).profile);
  CHECK(options_of({"bench", "--config", "r"}, "model: m\nbench: {profile: true}\n").profile);
}

TEST_CASE("files to watch a run by") {
  for (const char* command : {"generate", "score", "bench"}) {
    CAPTURE(command);
    Words words = {command, "--model", "m", "--metrics", "m.json", "--trace=t.json"};
    if (*command == 'g') words.insert(words.end(), {"--prompt", "p"});
    if (*command == 's') words.insert(words.end(), {"--text", "t"});
    const Options o = options_of(words);
    CHECK(o.metrics_path == "m.json");
    CHECK(o.trace_path == "t.json");
  }
  CHECK(options_of(generate({})).metrics_path.empty());
  CHECK(options_of(generate({})).trace_path.empty());
  const std::string yaml = "model: m\nmetrics: m.json\ntrace: t.json\n";
  const Options file = options_of({"generate", "--config", "r", "--prompt", "p", "--trace", "u.json"}, yaml);
  CHECK(file.metrics_path == "m.json");
  CHECK(file.trace_path == "u.json");
  CHECK(options_of({"plan", "--config", "r"}, yaml).command == Command::kPlan);  // of the same run
  CHECK(error_of({"plan", "--model", "m", "--trace", "t"}) == "--trace: this command has no such option");
  CHECK(error_of(generate({"--trace="})) == "--trace: is empty; give the name of a file");
  CHECK(error_of(generate({"--metrics=f", "--trace=f"})) ==
        "--metrics and --trace name the same file; give each its own");
  CHECK(error_of(generate({"--metrics=o.jsonl", "--output=o.jsonl"})) ==
        "--output: the same file as of --metrics or --trace; give each its own");
  CHECK(error_of({"bench", "--model", "m", "--json=f", "--trace=f"}) ==
        "--json: the same file as of --metrics or --trace; give each its own");
}

TEST_CASE("mistakes name the option and what would work") {
  struct Row {
    Words words;
    const char* error;
  };
  const Row rows[] = {
      {{}, "no command; see stagecoach --help"},
      {{"genrate"}, "genrate: unknown command; did you mean generate?"},
      {{"dance"},
       "dance: unknown command; this version has generate, score, tokenize, convert, plan, bench, profile, "
       "slurm"},
      {{"--model", "m"}, "--model: the command comes first, as in stagecoach generate --model"},
      {{"generate", "--prompt", "p"}, "--model: missing; give a model directory, or synthetic:gpt2 for random weights"},
      {{"generate", "--model", "m"},
       "no prompt; give --prompt TEXT, --prompts FILE, or --prompts - for standard input"},
      {generate({"--prompts", "f"}), "--prompt and --prompts exclude each other; give one of them"},
      {generate({"hello"}), "hello: unexpected argument; a prompt is given with --prompt TEXT, in quotes"},
      {generate({"--promt", "p"}), "--promt: unknown option; did you mean --prompt?"},
      {generate({"--max_new_tokens=3"}), "--max_new_tokens: unknown option; did you mean --max-new-tokens?"},
      {generate({"-x"}), "-x: unknown option"},
      {generate({"--repeat", "3"}), "--repeat: this command has no such option"},
      {generate({"--threads", "-3"}), "--threads: -3 is not a number from 1 to 4096, nor auto"},
      {generate({"--threads", "4.5"}), "--threads: 4.5 is not a number from 1 to 4096, nor auto"},
      {generate({"--threads", ""}), "--threads:  is not a number from 1 to 4096, nor auto"},
      {generate({"--threads", "99999999999999999999"}),
       "--threads: 99999999999999999999 is not a number from 1 to 4096, nor auto"},
      {generate({"--threads"}), "--threads: needs a value"},
      {generate({"--threads", "1", "--threads", "2"}), "--threads: given 2 times"},
      {generate({"--max-new-tokens", "0"}), "--max-new-tokens: 0 is not a number from 1 to 1073741824"},
      {generate({"--timeout", "nan"}), "--timeout: nan is not a number from 0.1 to 604800"},
      {generate({"--timeout", "inf"}), "--timeout: inf is not a number from 0.1 to 604800"},
      {generate({"--timeout", "0"}), "--timeout: 0 is not a number from 0.1 to 604800"},
      {generate({"--timeout", "1e99999"}), "--timeout: 1e99999 is not a number from 0.1 to 604800"},
      {generate({"--shard", "4/4"}), "--shard: 4/4 is not I/N with I from 0 to N-1, as in 0/4"},
      {generate({"--shard", "1"}), "--shard: 1 is not I/N with I from 0 to N-1, as in 0/4"},
      {generate({"--shard", "-1/2"}), "--shard: -1/2 is not I/N with I from 0 to N-1, as in 0/4"},
      {generate({"--output", "out.json"}),
       "--output: out.json does not end in .jsonl or .h5; leave --output out for text on standard output"},
      {generate({"--dtype", "flaot16"}),
       "--dtype: flaot16 is not one of float32, float16, bfloat16, int8; did you mean float16?"},
      {generate({"--quiet", "-v"}), "--quiet and --verbose exclude each other; give one"},
      {generate({"--quiet=maybe"}), "--quiet: maybe is not true or false"},
      {generate({"--logprobs"}), "--logprobs: needs --output FILE.jsonl or FILE.h5, where they are written"},
      {generate({"--long-prompt", "cut"}), "--long-prompt: cut is not one of error, truncate"},
      {generate({"--model", "n"}), "--model: given 2 times"},
      {{"bench", "--model", "m", "x"}, "x: unexpected argument"},
      {{"bench", "--model", "m", "--profile", "--check"},
       "--profile and --check exclude each other; checked operations take another time"},
      {generate({"--profile"}), "--profile: this command has no such option"},
      {{"score", "--model", "m", "--text", "a", "--profile"}, "--profile: this command has no such option"},
      {{"slurm"}, "--config: missing; give the run file that the job is to run, with model, prompts and output"},
      {{"slurm", "--config", "r", "--threads", "2"}, "--threads: this command has no such option"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.words.size());
    CHECK(error_of(row.words) == row.error);
  }
}

TEST_CASE("context shards are a number") {
  CHECK(options_of(generate({"--context-shards=4"})).context_shards == 4);
  CHECK(error_of(generate({"--context-shards=0"})).starts_with("--context-shards: 0 is not"));
}

TEST_CASE("sampling options and their ranges") {
  const Options options =
      options_of(generate({"--temperature=0.8", "--top-k=40", "--top-p", "0.9", "--repetition-penalty=1.2", "--seed=7",
                           "--num-samples=3", "--stop=x", "--stop", "y\n", "--output=x.h5"}));
  CHECK(options.sampling == stagecoach::SamplingOptions{0.8, 40, 0.9, 1.2});
  CHECK(options.seed == 7);
  CHECK(options.num_samples == 3);
  CHECK(options.stop == Words{"x", "y\n"});
  CHECK(options.output_path == "x.h5");
  CHECK(error_of(generate({"--temperature=warm"})) == "--temperature: warm is not a number from 0 to 1000");
  CHECK(error_of(generate({"--temperature=nan"})) == "--temperature: nan is not a number from 0 to 1000");
  CHECK(error_of(generate({"--temperature=-0.1"})) == "--temperature: -0.1 is not a number from 0 to 1000");
  CHECK(error_of(generate({"--top-p=1.01"})) == "--top-p: 1.01 is not a number from 0 to 1");
  CHECK(error_of(generate({"--top-k=-1"})) == "--top-k: -1 is not a number from 0 to 1073741824");
  CHECK(error_of(generate({"--repetition-penalty=0"})) == "--repetition-penalty: 0 is not a number from 0.001 to 1000");
  CHECK(error_of(generate({"--num-samples=0"})) == "--num-samples: 0 is not a number from 1 to 1048576");
  CHECK(error_of(generate({"--seed=-1"})).find("--seed: -1 is not a number from 0 to ") == 0);
  CHECK(error_of(generate({"--stop="})) == "--stop: an empty string would stop at once; leave it out");
}

TEST_CASE("score takes files or prompts, and not the options of generate") {
  const Options options = options_of({"score", "--model", "m", "--text", "a", "--text", "b", "--stride", "5"});
  CHECK(options.text_paths == Words{"a", "b"});
  CHECK(options.stride == 5);
  CHECK(error_of({"score", "--model", "m"}).find("no text; give --text FILE") == 0);
  CHECK(error_of({"score", "--model", "m", "--text", "a", "--prompts", "b"}) ==
        "--text and --prompts exclude each other; give one of them");
  CHECK(error_of({"score", "--model", "m", "--text", "a", "--top-k", "4"}) ==
        "--top-k: this command has no such option");
  CHECK(error_of({"score", "--model", "m", "--text", "a", "--stride", "0"}) ==
        "--stride: 0 is not a number from 1 to 1073741824");
}

TEST_CASE("help and version win over mistakes and end nothing") {
  const auto text = [](const Words& words) { return std::get<HelpText>(parse(words)).text; };
  CHECK(text({"--version"}) == "stagecoach 0.1.0 (CPU: AVX2; CUDA: no)\n");
  CHECK(text({"generate", "--version"}) == text({"--version"}));
  CHECK(text({"--help"}).find("generate") != std::string::npos);
  const std::string help = text({"generate", "--help", "--no-such"});
  for (const char* part :
       {"usage: stagecoach generate", "--max-new-tokens N", "[128]", "-v, --verbose", "--prompts FILE|-"}) {
    CAPTURE(part);
    CHECK(help.find(part) != std::string::npos);
  }
  CHECK(help.find("--repeat") == std::string::npos);
  CHECK(text({"tokenize", "-h"}).find("--decode") != std::string::npos);
  for (std::size_t begin = 0; begin < help.size();) {
    const std::size_t end = help.find('\n', begin);
    CHECK(end - begin <= 100);
    begin = end + 1;
  }
}

TEST_CASE("convert has a model, an output that ends in .h5 and a dtype") {
  const Options o = options_of({"convert", "--model", "m", "--output", "dir/model.h5", "--dtype", "float16"});
  CHECK(o.command == Command::kConvert);
  CHECK(o.output_path == "dir/model.h5");
  CHECK(o.dtype == DType::kFloat16);
  CHECK_FALSE(options_of({"convert", "--model", "m", "--output", "x.h5"}).dtype);
  CHECK(error_of({"convert", "--model", "m"}).starts_with("--output: missing"));
  CHECK(error_of({"convert", "--output", "x.h5"}).starts_with("--model: missing"));
  CHECK(error_of({"convert", "--model", "m", "--output", "x.jsonl"}).find("does not end in .h5") != std::string::npos);
  CHECK(error_of({"convert", "--model", "m", "--output", "a/.h5"}).find("does not end in .h5") != std::string::npos);
  CHECK(options_of({"convert", "--model", "m", "--output", "x.h5", "--dtype", "int8"}).dtype == DType::kInt8);
  CHECK(options_of({"convert", "--model", "m", "--output", "x.h5"}).layout == stagecoach::NativeLayout::kPanels);
  CHECK(options_of({"convert", "--model", "m", "--output", "x.h5", "--layout", "rows"}).layout ==
        stagecoach::NativeLayout::kRows);
  CHECK(error_of({"convert", "--model", "m", "--output", "x.h5", "--layout", "row"}).find("did you mean rows?") !=
        std::string::npos);
  CHECK(error_of({"convert", "--model", "m", "--output", "x.h5", "--layout", "rows", "--dtype", "int8"})
            .starts_with("--layout: rows cannot hold int8"));
  CHECK(error_of({"convert", "--model", "m", "--output", "x.h5", "--threads", "2"}).find("no such option") !=
        std::string::npos);
  CHECK(options_of({"convert", "--config", "r.yaml", "--output", "x.h5"}, "model: m\ndtype: bfloat16\n").dtype ==
        DType::kBFloat16);
}

}  // namespace
