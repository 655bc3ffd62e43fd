// `stagecoach convert`: the same tokens from every format, and files that are complete or absent whatever happens.
#include <doctest/doctest.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <thread>

#include "tests/program/run_program.hpp"

using namespace stagecoach::test;

namespace {

const std::string kTiny = "synthetic:gpt2,n_layer=3,n_embd=16,n_head=2,n_positions=40,vocab_size=50,seed=1";
const std::string kMedium =
    "synthetic:gpt2,n_layer=12,dtype=float32";  // half a gigabyte: long enough to be interrupted

std::string tokens_of(const ScratchFolder& folder, const std::string& model, const std::string& options = "",
                      int ranks = 0) {
  write_file(folder / "p.jsonl", "{\"tokens\": [1, 2, 3]}\n{\"tokens\": [4]}\n");
  const Ended ended = run_program(ranks, fmt::format("generate --model {} --prompts {} --output {} --logprobs {}",
                                                     model, folder / "p.jsonl", folder / "o.jsonl", options));
  INFO(ended.err);
  CHECK(ended.status == 0);
  return read_file(folder / "o.jsonl");
}

void expect_nothing_left(const ScratchFolder& folder, const std::string& name) {
  CHECK(!std::filesystem::exists(folder / name));
  CHECK(!std::filesystem::exists(folder / (name + ".partial")));
}

void expect_one_error(const Ended& ended, int status, const std::string& says) {
  INFO("out: " << ended.out << "\nerr: " << ended.err);
  CHECK(ended.status == status);
  CHECK(ended.messages() == 1);
  CHECK(ended.says(says));
  CHECK(!ended.says("HDF5-DIAG"));
  CHECK(ended.seconds < on_this_machine(30.0));
}

}  // namespace

TEST_CASE("convert: the same tokens and log-probabilities, alone and under mpirun") {
  const ScratchFolder folder;
  const std::string expected = tokens_of(folder, kTiny);
  for (const int ranks : {0, 2}) {
    const std::string file = folder / fmt::format("m{}.h5", ranks);
    const Ended ended = run_program(ranks, fmt::format("convert --model {} --output {}", kTiny, file));
    INFO(ended.err);
    CHECK(ended.status == 0);
    CHECK(ended.out.empty());
    CHECK(ended.messages() == 1);
    CHECK(tokens_of(folder, file) == expected);
  }
  CHECK(read_file(folder / "m0.h5") == read_file(folder / "m2.h5"));
  // Onto itself, and to float32, which changes nothing.
  CHECK(run_program(0, fmt::format("convert --model {0} --output {0} --quiet", folder / "m2.h5")).status == 0);
  CHECK(read_file(folder / "m0.h5") == read_file(folder / "m2.h5"));
  CHECK(run_program(0, fmt::format("convert --model {0} --output {0} --dtype float32", folder / "m2.h5")).status == 0);
  CHECK(tokens_of(folder, folder / "m2.h5") == expected);
}

TEST_CASE("convert: every dtype and layout gives the tokens of loading in that dtype") {
  const ScratchFolder folder;
  const std::string file = folder / "m.h5";
  for (const std::string dtype : {"float32", "float16", "bfloat16", "int8"}) {
    const std::string model =
        fmt::format("synthetic:gpt2,n_layer=3,n_embd=144,n_head=2,n_positions=40,vocab_size=50,seed=1,dtype={}",
                    dtype == "int8" ? "float32" : dtype);
    const std::string expected = tokens_of(folder, model, "--dtype " + dtype);
    for (const std::string layout : {"panels", "rows"}) {
      if (dtype == "int8" && layout == "rows") continue;
      const Ended ended = run_program(
          0, fmt::format("convert --model {} --output {} --dtype {} --layout {}", model, file, dtype, layout));
      INFO(ended.err);
      CHECK(ended.status == 0);
      CHECK(tokens_of(folder, file) == expected);
      CHECK(tokens_of(folder, file, "--check --threads 2") == expected);
      CHECK(tokens_of(folder, file, "", 3) == expected);
      if (dtype != "int8") CHECK(tokens_of(folder, file, "--dtype int8") == tokens_of(folder, model, "--dtype int8"));
    }
  }
  for (const int ranks : {0, 2}) {
    expect_one_error(
        run_program(ranks, fmt::format("generate --model {} --prompts {} --dtype float16", file, folder / "p.jsonl")),
        2, "m.h5: holds int8 weights, from which float16 ones cannot be made");
    expect_one_error(run_program(ranks, fmt::format("convert --model {0} --output {0} --dtype float32", file)), 2,
                     "holds int8 weights");
  }
}

TEST_CASE("convert: mistakes are one message and leave nothing behind") {
  const ScratchFolder folder;
  for (const int ranks : {0, 2}) {
    expect_one_error(run_program(ranks, "convert --model /does/not/exist --output " + (folder / "x.h5")), 2,
                     "/does/not/exist");
    expect_one_error(run_program(ranks, "convert --model " + kTiny + " --output " + (folder / "x.jsonl")), 2, ".h5");
    expect_one_error(run_program(ranks, "convert --model " + kTiny + " --output /does/not/exist/x.h5"), 2,
                     "/does/not/exist/x.h5");
    expect_one_error(
        run_program(ranks, "convert --model " + kTiny + " --dtype int8 --layout rows --output " + (folder / "x.h5")), 2,
        "--layout: rows cannot hold int8 weights");
  }
  expect_nothing_left(folder, "x.h5");
}

TEST_CASE("convert: a damaged file is refused by generate on every rank with one message") {
  const ScratchFolder folder;
  CHECK(run_program(0, fmt::format("convert --model {} --output {}", kTiny, folder / "m.h5")).status == 0);
  std::string bytes = read_file(folder / "m.h5");
  bytes[bytes.size() - 9] ^= 4;  // the last tensor
  write_file(folder / "m.h5", bytes);
  write_file(folder / "p.jsonl", "{\"tokens\": [1, 2, 3]}\n");
  for (const int ranks : {0, 2}) {
    expect_one_error(
        run_program(ranks, fmt::format("generate --model {} --prompts {}", folder / "m.h5", folder / "p.jsonl")), 2,
        "tensor /final/ln_f.bias: its bytes do not match their checksum; the file is damaged, convert it again");
  }
}

TEST_CASE("convert: a file that may not grow further") {
  const ScratchFolder folder;
  for (const int blocks : {0, 3, 40, 400, 20000}) {  // of 512 or 1024 bytes
    const std::string command =
        fmt::format("ulimit -f {}; timeout -k 5 60 {} convert --model {} --output {} >{} 2>{}", blocks,
                    STAGECOACH_PROGRAM, kMedium, folder / "x.h5", folder / "out", "/dev/null");
    const auto start = std::chrono::steady_clock::now();
    const int code = std::system(command.c_str());
    INFO(command);
    CHECK(WIFEXITED(code));
    CHECK(WEXITSTATUS(code) == 1);
    CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(30));
    expect_nothing_left(folder, "x.h5");
  }
}

TEST_CASE("convert: a full disk") {
  const ScratchFolder folder;
  if (::mount("tmpfs", folder.path().c_str(), "tmpfs", 0, "size=3m") != 0) {
    MESSAGE("left out: only root can mount a small file system");
    return;
  }
  // Full in the data, in the first pages, and at the very end.
  const Ended ended = run_program(0, fmt::format("convert --model {} --output {}", kMedium, folder / "x.h5"));
  expect_one_error(ended, 1, "No space left on device");
  expect_nothing_left(folder, "x.h5");
  const std::string fill = fmt::format("head -c 10m /dev/zero > {} 2>/dev/null", folder / "fill");
  CHECK(std::system(fill.c_str()) != 0);
  const Ended at_once = run_program(0, fmt::format("convert --model {} --output {}", kTiny, folder / "x.h5"));
  expect_one_error(at_once, 1, "No space left on device");
  expect_nothing_left(folder, "x.h5");
  for (int pages = 1; pages < 60; pages += 6) {
    std::filesystem::resize_file(folder / "fill", (3 << 20) - pages * 4096);
    const Ended late = run_program(0, fmt::format("convert --model {} --output {}", kTiny, folder / "x.h5"));
    if (late.status == 0) break;
    expect_one_error(late, 1, "No space left on device");
    expect_nothing_left(folder, "x.h5");
  }
  ::umount(folder.path().c_str());
}

TEST_CASE("convert: killed at any moment, nothing stands under the final name") {
  const ScratchFolder folder;
  write_file(folder / "x.h5", "the file before");
  for (const int milliseconds : {20, 150, 400}) {
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      const std::string file = folder / "x.h5";
      ::execl(STAGECOACH_PROGRAM, STAGECOACH_PROGRAM, "convert", "--model", kMedium.c_str(), "--output", file.c_str(),
              "--quiet", nullptr);
      ::_exit(127);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
    ::kill(child, SIGKILL);
    int code = 0;
    ::waitpid(child, &code, 0);
    CHECK(WIFSIGNALED(code));
    CHECK(read_file(folder / "x.h5") == "the file before");
  }
  // The next conversion takes over what was left.
  CHECK(run_program(0, fmt::format("convert --model {} --output {}", kTiny, folder / "x.h5")).status == 0);
  CHECK(!std::filesystem::exists(folder / "x.h5.partial"));
  tokens_of(folder, folder / "x.h5");
}

TEST_CASE("convert: HDF5's own locks are left alone") {
  const ScratchFolder folder;
  ::setenv("HDF5_USE_FILE_LOCKING", "TRUE", 1);
  CHECK(run_program(0, fmt::format("convert --model {} --output {}", kTiny, folder / "x.h5")).status == 0);
  tokens_of(folder, folder / "x.h5");
  ::unsetenv("HDF5_USE_FILE_LOCKING");
}

TEST_CASE("the bundled demo model") {
  const std::string model = STAGECOACH_SOURCE_DIR "/configs/demo";
  const Ended text = run_program(0, "generate --max-new-tokens 8 --prompt 'It had rained' --model " + model);
  INFO(text.err);
  CHECK(text.status == 0);
  CHECK(text.out.starts_with("It had rained"));
  const Ended ids = run_program(0, "tokenize --model " + model + "/model.h5 " + model + "/prompts.txt");
  CHECK(ids.status == 0);
  CHECK(!ids.out.empty());
}
